"""A folder of image files as the source of images. Light until loaded."""

from dataclasses import replace
from pathlib import Path

from stagecraft.config.sections import ImageFiles
from stagecraft.data import folders
from stagecraft.data.decoding import decode_files, is_grey, own_side, refused_bombs
from stagecraft.data.files import digest_of
from stagecraft.data.images import Contents, Images, Look
from stagecraft.data.texts import metadata_files, read_texts


def load(settings: ImageFiles, threads: int = 1) -> Images:
    """Load the PNG, JPEG and WebP files of a folder and all below it, sorted by their relative posix paths.

    Hidden files and folders are ignored, images with other endings counted in a note. Of an animation the first frame counts;
    EXIF orientation is applied; transparent pixels are laid over white; 16-bit grey is scaled to 8 bit. Classes and splits
    are those of `folders.read_layout`.
    """
    folder = path_of(settings)
    layout = folders.read_layout(folder)
    paths = [folder / name for name in layout.names]
    with refused_bombs():
        images = decode_files(paths, settings, threads)
    return Images(images, with_texts(folder, layout), f"{len(paths)} image files")


def fingerprint(settings: ImageFiles) -> str:
    """Over the relative paths, sizes and times of images and texts; folders without images count, as classes are numbered with
    them.
    """
    folder = path_of(settings)
    listing = folders.list_folder(folder)
    texts = [(file.relative_to(folder).as_posix(), file.stat()) for file in metadata_files(folder)]
    return digest_of([*((name, entry.stat()) for name, entry in listing.files), *texts], listing.empty_folders())


def look(settings: ImageFiles) -> Look:
    """What names and texts tell, and the first image's header; channels are not known without all of the pixels."""
    folder = path_of(settings)
    layout = folders.read_layout(folder)
    return Look(with_texts(folder, layout), settings.resolution or own_side(folder / layout.names[0]), None)


def guess_channels(settings: ImageFiles) -> int:
    """The channels of the first image, which are likely those of all."""
    folder = path_of(settings)
    with refused_bombs():
        return 1 if is_grey(folder / folders.read_layout(folder).names[0]) else 3


def with_texts(folder: Path, layout: folders.FolderLayout) -> Contents:
    """The content of a folder, with the texts of its images."""
    return replace(layout.contents, texts=read_texts(folder, layout.names))


def path_of(settings: ImageFiles) -> Path:
    """The folder at `path`; ValueError when there is none."""
    path = Path(settings.path)
    if not path.is_dir():
        raise ValueError(f"prepare_data.path: {path}: there is no such folder; correct the path")
    return path
