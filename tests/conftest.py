import torch
from hypothesis import settings

# The tests' tensors are small; on busy cores, threads that wait for each other cost more than they bring.
torch.set_num_threads(1)

# A deadline measures the machine, and a fresh seed makes a red build that nobody can repeat.
settings.register_profile("distbelief", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("distbelief")
