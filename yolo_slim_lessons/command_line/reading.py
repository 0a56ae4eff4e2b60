"""Model and images as the arguments name them. Leaves out: what is done with them."""

from argparse import Namespace
from pathlib import Path

from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.data import ImageData, load_images
from yolo_slim_lessons.measurement import count_parameters
from yolo_slim_lessons.models import image_size_of, load_model
from yolo_slim_lessons.packing import load_packed


def read_model(source: str, settings: Namespace) -> ClassificationModel:
    """The model of a ``.slim`` file or of a checkpoint, or one of the course; prints what it is."""
    if Path(source).suffix == ".slim":
        model = load_packed(source)
        model = model.to(settings.device) if settings.device else model
    else:
        model = load_model(source, device=settings.device, trust=settings.trust)
    size = f"{Path(source).stat().st_size:,} bytes, " if Path(source).is_file() else ""
    count = count_parameters(model)
    print(f"{source}: {size}{len(model.names)} classes, {image_size_of(model)} px, {count:,} parameters", flush=True)
    return model


def read_images(source: str, model: ClassificationModel, settings: Namespace) -> ImageData:
    """The images of a folder, of the size that ``model`` was trained for unless ``--image-size`` says another."""
    size = image_size_of(model) if settings.image_size is None else settings.image_size
    data = load_images(source, size, broken=settings.broken)
    print(f"{source}: {data!r}", flush=True)
    return data
