"""What mosaicml-streaming imports of torchvision for its vision datasets, none of which is measured: torchvision has
no build for the CPU torch. Where a peer's own torchvision can be imported, it is used instead."""
