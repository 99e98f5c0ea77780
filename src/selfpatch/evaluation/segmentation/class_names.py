"""Class names of the segmentation sets, in the order of the class numbers, and the numbers in their files."""

from __future__ import annotations


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


ADE20K = _names(
    """wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
    table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
    seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
    counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table,
    pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench,
    countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel,
    light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel,
    pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt,
    canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball,
    food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood,
    sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator,
    glass, clock, flag"""
)

VOC = _names(
    """background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse,
    motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"""
)

CITYSCAPES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
"""Names by the label id in `*_labelIds.png`; all other ids are void."""

CITYSCAPES_VOID = tuple(number for number in range(34) if number not in CITYSCAPES)

CAMVID = _names("Sky, Building, Pole, Road, Pavement, Tree, SignSymbol, Fence, Car, Pedestrian, Bicyclist")

_COCO_THINGS = {
    "person": "person",
    "vehicle": "bicycle, car, motorcycle, airplane, bus, train, truck, boat",
    "outdoor": "traffic light, fire hydrant, -, stop sign, parking meter, bench",
    "animal": "bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe",
    "accessory": "-, backpack, umbrella, -, -, handbag, tie, suitcase",
    "sports": """frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,
        tennis racket""",
    "kitchen": "bottle, -, wine glass, cup, fork, knife, spoon, bowl",
    "food": "banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake",
    "furniture": "chair, couch, potted plant, bed, -, dining table, -, -, toilet, -",
    "electronic": "tv, laptop, mouse, remote, keyboard, cell phone",
    "appliance": "microwave, oven, toaster, sink, refrigerator, -",
    "indoor": "book, clock, vase, scissors, teddy bear, hair drier, toothbrush, -",
}
"""COCO's ids 1 to 90 (91 with the last) in order, by super-category; `-` is an id that no annotation has."""

_COCO_STUFF = {
    "textile": """banner, blanket, cloth, clothes, curtain, mat, napkin, pillow, rug, textile-other, towel""",
    "plant": "branch, bush, flower, grass, leaves, moss, plant-other, straw, tree",
    "building": "bridge, building-other, house, roof, skyscraper, tent",
    "furniture": """cabinet, counter, cupboard, desk-stuff, door-stuff, furniture-other, light, mirror-stuff, shelf,
        stairs, table""",
    "structural": "cage, fence, net, railing, structural-other",
    "raw-material": "cardboard, metal, paper, plastic",
    "floor": "carpet, floor-marble, floor-other, floor-stone, floor-tile, floor-wood",
    "ceiling": "ceiling-other, ceiling-tile",
    "sky": "clouds, sky-other",
    "ground": """dirt, gravel, ground-other, mud, pavement, platform, playingfield, railroad, road, sand, snow""",
    "water": "fog, river, sea, water-other, waterdrops",
    "food": "food-other, fruit, salad, vegetable",
    "solid": "hill, mountain, rock, solid-other, stone, wood",
    "wall": "wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood",
    "window": "window-blind, window-other",
}
"""COCO's ids 92 to 182, which are in the order of the alphabet, by super-category."""

COCO_27 = (
    *("electronic", "appliance", "food", "furniture", "indoor", "kitchen", "accessory", "animal", "outdoor", "person"),
    *("sports", "vehicle", "ceiling-stuff", "floor-stuff", "food-stuff", "furniture-stuff", "raw-material-stuff"),
    *("textile-stuff", "wall-stuff", "window-stuff", "building-stuff", "ground-stuff", "plant-stuff", "sky-stuff"),
    *("solid-stuff", "structural-stuff", "water-stuff"),
)
"""The super-categories, in the order of IIC, PiCIE and STEGO."""


def _coco_pixels() -> list[tuple[str, str]]:
    """(class, super-category) of each pixel value of the stuff-thing maps: COCO's id - 1, 0 to 181."""
    things = [(name, group) for group, names in _COCO_THINGS.items() for name in _names(names)]
    stuff = [(name, f"{group}-stuff") for group, names in _COCO_STUFF.items() for name in _names(names)]
    return [*things, *sorted(stuff)]


COCO_PIXELS = _coco_pixels()
COCO_171 = tuple(name for name, _ in COCO_PIXELS if name != "-")
