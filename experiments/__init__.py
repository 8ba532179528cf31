"""
# Experiments

Each experiment is a labml program that reads as a page: configuration, step and losses stand in
plain sight, the loop and the store elsewhere.

Read [the distillation step on CIFAR-10](cifar10/distill.html) first: it has the whole method, with
its mathematics. The [large model](cifar10/large.html) is its teacher, the
[small one alone](cifar10/small.html) what it is compared with. The [digits](digits/index.html) are
the same job in seconds, and [the record](record/index.html) is the same with several seeds and
controls. The other pages are what experiments share.
"""
