"""Benchmarks of every fast path against its plain reference, side by side in one process.

python -m benchmarks                    all of them
python -m benchmarks.step --seconds 20  one: step, loader, ops, davis or scaling
python -m benchmarks.peers              selfpatch against lightly
benchmarks/gpu.sh                       the ones that matter on a CUDA machine, within 8 minutes
"""
