"""Signatures with every setting."""

import inspect

from selfpatch.api.pretrain import pretrain
from selfpatch.config.run import RunConfig
from selfpatch.config.signature import signature_with_settings


def test_settings_stand_before_the_rest() -> None:
    def train(config: RunConfig | None = None, *, epochs: int = 1, **settings: object) -> None: ...

    signature = signature_with_settings(train, RunConfig)
    names = list(signature.parameters)
    assert names[:2] == ["config", "epochs"]
    assert names[-1] == "settings"
    assert names.count("epochs") == 1
    assert signature.parameters["method"].annotation is str
    signature.bind(data="photos", method="dino", selfpatch={"k": 2})


def test_pretrain_completes_settings() -> None:
    assert {"data", "method", "objective", "model", "crops", "dry_run"} <= set(inspect.signature(pretrain).parameters)
