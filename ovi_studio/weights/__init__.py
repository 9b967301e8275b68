"""Where the weights come from, and how a checkpoint's tensors become the components' own."""
