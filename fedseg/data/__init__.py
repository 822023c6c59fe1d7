"""A site's images: found, checked, normalised, split by patient. Nothing here is ever sent."""
