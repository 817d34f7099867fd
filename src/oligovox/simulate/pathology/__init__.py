"""What is wrong with it: lesions of multiple sclerosis, rims, gliomas, and what only looks like lesions."""
