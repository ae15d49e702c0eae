"""What on a site will bite a run, found out before it does."""
