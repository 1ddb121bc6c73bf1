"""The names of the modalities."""

CATALOG = ("text", "image", "audio")  # read from columns of the catalogue
JOINT = "joint"  # an item's text, image and audio encoded together, in one input
BEHAVIOUR = "behaviour"  # made from the interaction log, not by an encoder
ENCODED = (*CATALOG, JOINT)  # made by an encoder
ALL = (*ENCODED, BEHAVIOUR)
