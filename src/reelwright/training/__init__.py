"""Parts of training that work on any `nn.Module`: settings, optimizer, averages, checkpoints, trackers, devices."""
