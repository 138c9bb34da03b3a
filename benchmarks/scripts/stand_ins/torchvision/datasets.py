class VisionDataset:
    """Only a base class to name."""
