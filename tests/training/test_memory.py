"""Memory of networks on one process and on several."""

from __future__ import annotations

import torch
from torch import nn

from selfpatch.training.memory import memory_of, memory_when_shared
from selfpatch.training.optim import make_optimizer
from tests.helpers.tiny import tiny_config, tiny_student_teacher


def test_shared_tensors_count_once_and_frozen_ones_take_no_gradient() -> None:
    shared = nn.Linear(10, 10, bias=False)
    network = nn.Sequential(shared, nn.BatchNorm1d(10), nn.Sequential(shared))
    network[1].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    stored = 4 * (100 + 2 * 10 + 2 * 10) + 8
    assert memory_of(network) == {"parameters and buffers": stored}
    assert memory_of(network, optimizer) == {
        "parameters and buffers": stored, "gradients": 400, "optimizer state": 400,
    }  # fmt: skip


def test_processes_share_what_fsdp_shards() -> None:
    student_teacher = tiny_student_teacher()
    optimizer = make_optimizer(student_teacher, tiny_config().optimizer)
    whole = memory_of(student_teacher, optimizer)
    assert memory_when_shared(student_teacher, optimizer, "fsdp", 1, None) == whole
    buckets = {"buckets of gradients": whole["gradients"]}
    assert memory_when_shared(student_teacher, optimizer, "ddp", 4, None) == whole | buckets
    sharded = memory_when_shared(student_teacher, optimizer, "fsdp", 4, None)
    buffers = sum(b.numel() * b.element_size() for b in student_teacher.buffers())
    assert sharded["parameters and buffers"] == (whole["parameters and buffers"] - buffers) // 4 + buffers
    assert sharded["optimizer state"] == whole["optimizer state"] // 4
    name = "gathered parameters and gradients"
    low = memory_when_shared(student_teacher, optimizer, "fsdp", 4, torch.bfloat16)
    block = sum(p.numel() for p in student_teacher.student.backbone.blocks()[0].parameters())
    assert sharded[name] - low[name] == 3 * 2 * block, "two blocks and the gradients of one, in half of the bytes"
