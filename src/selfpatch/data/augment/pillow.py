"""Plain renderer: one view at a time with Pillow, in the order of DINO's recipe.

Every faster renderer is tested against this one.
"""

from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import functional as tvf
from torchvision.transforms.functional import InterpolationMode

from selfpatch.config.schema import Size, height_and_width
from selfpatch.data.augment.multichannel import render_raster, resize_raster
from selfpatch.data.augment.multicrop import ViewParameters
from selfpatch.data.decode.multichannel import Raster
from selfpatch.data.decode.opening import check_resized
from selfpatch.data.decode.pillow import Picture
from selfpatch.ops.colour import SOLARIZE_THRESHOLD

_ADJUST = {
    "brightness": tvf.adjust_brightness,
    "contrast": tvf.adjust_contrast,
    "saturation": tvf.adjust_saturation,
    "hue": tvf.adjust_hue,
}


def render(image: Picture, size: Size, parameters: ViewParameters) -> Tensor:
    """Crop and resize (antialiased), flip, jitter colours, make grey, blur and solarize a view of an image.

    The parameters are drawn by `draw_view` for the size of the image. `size` is the side of the view or (height, width)
    in pixels. The view is [3, height, width] in uint8. A raster is rendered by `multichannel.render_raster` to [C,
    height, width] in uint8 or float32.
    """
    if isinstance(image, Raster):
        return render_raster(image, size, parameters)
    p = parameters
    box = p.top, p.left, p.height, p.width
    view = tvf.resized_crop(image, *box, list(height_and_width(size)), InterpolationMode(p.resampling))
    if p.flip:
        view = tvf.hflip(view)
    for name in p.jitter.order if p.jitter is not None else ():
        view = _ADJUST[name](view, getattr(p.jitter, name))
    if p.grey:
        view = tvf.to_grayscale(view, num_output_channels=3)
    if p.blur_radius > 0:
        view = view.filter(ImageFilter.GaussianBlur(p.blur_radius))
    if p.solarize:
        view = ImageOps.solarize(view, SOLARIZE_THRESHOLD)
    return tvf.pil_to_tensor(view)


def resize_picture(
    picture: Picture, width: int, height: int, *, resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> Picture:
    """Resize the whole picture (antialiased); a raster always bicubic.

    Raises:
        ValueError: the result would be too large, as that of a very long image whose shorter side is enlarged.
    """
    check_resized(picture.size, width, height)
    if isinstance(picture, Raster):
        return Raster(resize_raster(picture, width, height))
    return picture.resize((width, height), resampling)


def to_tensor(picture: Picture) -> Tensor:
    """Return the pixels [C, h, w] in uint8, or in float32 for a deep raster."""
    return picture.pixels if isinstance(picture, Raster) else tvf.pil_to_tensor(picture)
