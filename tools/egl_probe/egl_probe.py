def get_available_devices():
    """No GPU to pick: robomimic leaves the choice to MuJoCo."""
    return []
