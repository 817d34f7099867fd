"""What is in a body: the brain and the head around it, the abdomen."""
