"""Benchmarks of every fast path against its plain reference, side by side in one process.

python -m benchmarks                    all of them but objectives and packing
python -m benchmarks step --seconds 20  one: loader, step, end_to_end, ops, davis, scaling, objectives or packing
python -m benchmarks.sources            the loader on several sources of the same images
python -m benchmarks.parallel           a step on several processes, under DDP and FSDP2
python -m benchmarks.peers              DINO of selfpatch against that of other packages, from files to steps
python -m benchmarks.instruction_sets   this CPU against itself without AVX-512
benchmarks/gpu.sh                       CUDA tests, training, step and loader on a GPU machine, within 9 minutes
"""
