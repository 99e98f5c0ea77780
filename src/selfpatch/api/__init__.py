"""Python functions behind the commands: what `import selfpatch` offers."""
