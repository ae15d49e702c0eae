"""The official score: five exact sums per image, and what is made of them."""
