from hypothesis import settings

# A deadline measures the machine, and a fresh seed makes a red build that nobody can repeat.
settings.register_profile("distbelief", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("distbelief")
