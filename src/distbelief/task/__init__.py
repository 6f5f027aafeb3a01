"""What the user brings: a model, a loss, data, and the door by which its gradients enter the vector."""
