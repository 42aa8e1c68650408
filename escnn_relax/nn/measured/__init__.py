"""What a layer's kernel tells: the subgroup that it kept, how well the grid tells it, certified errors."""
