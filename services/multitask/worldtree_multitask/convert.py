"""Messages to the words of domain.py: pure functions, each refusal naming field, value and limit."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from google.protobuf.json_format import MessageToDict, SerializeToJsonError
from numpy.typing import NDArray
from worldtree.common.v1 import common_pb2 as common
from worldtree.multitask.v1 import multi_task_pb2 as pb
from worldtree_runtime.errors import InvalidRequest, NotFound
from worldtree_runtime.frames import read_frames
from worldtree_runtime.multitask_package import MultitaskPackage

from worldtree_multitask.config import MultitaskSettings
from worldtree_multitask.domain import Recipe
from worldtree_multitask.merging.preference import preference_shares
from worldtree_multitask.package import Images, ImageSet
from worldtree_multitask.served import Served, plain

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PAGE_DEFAULT, _PAGE_MAX = 100, 1000


def to_images(
    message: common.Frames, package: MultitaskPackage, settings: MultitaskSettings, field: str, *, limit: int
) -> Images:
    """uint8 [images, height, width, 3]."""

    def check_count(count: int) -> None:
        if not 1 <= count <= limit:
            raise InvalidRequest(field, f"{field} must hold 1 to {limit} images, got {count}", limit=limit, count=count)

    size = package.image
    pixels = read_frames(
        message,
        field,
        height_px=size.height_px,
        width_px=size.width_px,
        max_pixels=settings.max_image_pixels,
        check_count=check_count,
    )
    return np.frombuffer(pixels, np.uint8).reshape(-1, size.height_px, size.width_px, size.channels)


def to_tasks(names: Sequence[str], package: MultitaskPackage, field: str = "tasks") -> tuple[str, ...]:
    """The tasks asked for; all where none is named."""
    for index, name in enumerate(names):
        if package.task(name) is None:
            raise NotFound("task", name, known=package.task_names)
        if name in names[:index]:
            raise InvalidRequest(f"{field}[{index}]", f"{field} must name each task once, got {name!r} twice")
    return tuple(names) or package.task_names


def to_recipe(message: pb.Recipe) -> Recipe:
    """As it was sent; `Served.resolve` looks at it."""
    if not message.method:
        raise InvalidRequest("recipe.method", "recipe.method must name a method, got none")
    try:
        parameters = MessageToDict(message.parameters)
    except (SerializeToJsonError, ValueError) as error:
        raise InvalidRequest(
            "recipe.parameters", "recipe.parameters must hold finite numbers, got NaN or inf"
        ) from error
    return Recipe(message.method, plain(parameters))


def to_preference(message: pb.Preference, package: MultitaskPackage) -> Recipe:
    """A preference as the recipe that answers it, its weights as shares that sum to 1."""
    try:
        shares = preference_shares(
            list(message.weights), list(message.tasks), package.task_names, field="preference.weights"
        )
    except ValueError as error:
        raise InvalidRequest("preference.weights", str(error)) from error
    return Recipe("preference", {"weights": [float(share) for share in shares]})


def equal_preference(package: MultitaskPackage) -> Recipe:
    """What answers one who says nothing."""
    return Recipe("preference", {"weights": [1.0] * len(package.tasks)})


def to_name(name: str) -> str:
    """A merge's name, or nothing."""
    if name and not _NAME.fullmatch(name):
        raise InvalidRequest(
            "name",
            f'name must be 1 to 64 of a-z, 0-9, "-", "_", ".", beginning with a letter or digit, got {name[:80]!r}',
        )
    return name


def to_image_set(
    request: pb.CreateMergeRequest, served: Served, settings: MultitaskSettings, *, default: str | None
) -> tuple[ImageSet, str]:
    """What a merge learns from, and what names its content. `default`: the set where the request has none."""
    package = served.package
    if request.images and request.image_set:
        raise InvalidRequest("images", "images and image_set must not both be set")
    if request.images:
        return _own_images(request.images, package, settings)
    name = request.image_set or default
    if name is None:
        return ImageSet({}, {}), ""
    found = served.contents.image_sets.get(name)
    if found is None:
        raise NotFound("image set", name, known=sorted(served.contents.image_sets))
    return found, f"set {name}"


def _own_images(
    messages: Sequence[pb.TaskImages], package: MultitaskPackage, settings: MultitaskSettings
) -> tuple[ImageSet, str]:
    images: dict[str, Images] = {}
    labels: dict[str, NDArray[np.int64]] = {}
    digest = hashlib.sha256()
    left = settings.max_learning_images
    for index, message in enumerate(messages):
        field = f"images[{index}]"
        if message.task and package.task(message.task) is None:
            raise NotFound("task", message.task, known=package.task_names)
        own = to_images(message.images, package, settings, f"{field}.images", limit=max(left, 1))
        left -= len(own)
        if left < 0:
            limit = settings.max_learning_images
            raise InvalidRequest("images", f"images must be {limit} in all at most, got more", limit=limit)
        tasks = (message.task,) if message.task else package.task_names
        if twice := [task for task in tasks if task in images]:
            raise InvalidRequest(f"{field}.task", f"{field}.task: images of task {twice[0]} are given twice")
        for task in tasks:
            images[task] = own
        if message.labels:
            labels[message.task] = _labels(message, package, len(own), field)
        digest.update(f"{message.task}/{own.shape}/{list(message.labels)}/".encode())
        digest.update(own.tobytes())
    return ImageSet(images, labels), f"images {digest.hexdigest()}"


def _labels(message: pb.TaskImages, package: MultitaskPackage, count: int, field: str) -> NDArray[np.int64]:
    task = package.task(message.task)
    if task is None:
        raise InvalidRequest(f"{field}.task", f"{field}.task must be set where labels are")
    if len(message.labels) != count:
        raise InvalidRequest(
            f"{field}.labels", f"{field}.labels must be {count}, one an image, got {len(message.labels)}"
        )
    for place, label in enumerate(message.labels):
        if not 0 <= label < len(task.classes):
            last = len(task.classes) - 1
            raise InvalidRequest(
                f"{field}.labels[{place}]", f"{field}.labels[{place}] must be a class 0 to {last}, got {label}"
            )
    return np.array(message.labels, np.int64)


def to_page(request: pb.ListMergesRequest) -> tuple[int, int]:
    """How many, and how many come before them."""
    size = request.page_size or _PAGE_DEFAULT
    if not 1 <= size <= _PAGE_MAX:
        raise InvalidRequest("page_size", f"page_size must be 1 to {_PAGE_MAX}, got {request.page_size}")
    if request.page_token and not (request.page_token.isascii() and request.page_token.isdigit()):
        raise InvalidRequest("page_token", f"page_token must be one that ListMerges gave, got {request.page_token!r}")
    return size, int(request.page_token or 0)
