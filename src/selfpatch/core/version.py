"""Version of the package, declared here only."""

VERSION = "0.1.0"
