"""How a group moves pixels, voxels and scattered sites."""
