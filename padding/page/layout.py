# SPDX-License-Identifier: Apache-2.0
"""How the page looks, and which function a button calls; built with Gradio, which only this module imports."""

import functools
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from padding.errors import UserError
from padding.page.examples import generated_image, photograph
from padding.page.models import PageModel
from padding.page.pictures import as_image
from padding.page.side_by_side import compare
from padding.page.strokes import grow, save_labels, stroke_colors, strokes_of
from padding.page.zero_shot import MAX_NAME, addable_names, learn_class, segment_image

_STEP_SECONDS = 0.4  # a step of growth stays to be seen
_WAITING = 16  # requests in line; more are refused
_OLDEST_SECONDS = 3600  # of a file in the temporary folder
_SOURCES = ("upload", "clipboard")
_BUTTONS = ["download", "fullscreen"]  # of a picture; gradio's third one shares it with the world
_FONTS = ["system-ui", "sans-serif"]  # of the machine: none is fetched
_BIAS = 6.0

Models = Mapping[str, PageModel]


def look() -> dict[str, Any]:
    """What gradio's ``launch`` takes of the page's appearance."""
    return {"theme": gr.themes.Default(font=_FONTS, font_mono=["ui-monospace", "monospace"])}


def build_page(models: Models, folder: Path) -> gr.Blocks:
    """A tab for each thing that some model can do.

    Args:
        models: by name, at least one.
        folder: for label maps to download.
    """
    zero_shot = {name: model for name, model in models.items() if model.is_zero_shot}
    growing = {name: model for name, model in models.items() if model.grows_labels}
    title = "Segmentation with missing supervision"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(_OLDEST_SECONDS // 6, _OLDEST_SECONDS)) as page:
        gr.Markdown(f"# {title}\nImages stay on this machine and are deleted when the page ends.")
        if zero_shot:
            with gr.Tab("Zero-shot"):
                _zero_shot_tab(zero_shot)
        if growing:
            with gr.Tab("Scribbles"):
                _strokes_tab(growing, folder)
        with gr.Tab("Side by side"):
            _side_by_side_tab(models)
    return page.queue(max_size=_WAITING, default_concurrency_limit=1)


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    """What the user can mend is shown on the page, in the words of the error."""

    @functools.wraps(function)
    def telling(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UserError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error

    return telling


def _told_steps(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The same of a function that answers several times."""

    @functools.wraps(function)
    def telling(*arguments: Any) -> Iterator[Any]:
        try:
            yield from function(*arguments)
        except UserError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error

    return telling


def _choice(models: Models) -> gr.Dropdown:
    return gr.Dropdown(list(models), value=next(iter(models)), label="Model")


def _image_input(name: str) -> gr.Image:
    return gr.Image(label="Image", type="numpy", image_mode="RGB", sources=_SOURCES, elem_id=name, buttons=_BUTTONS)


def _examples(target: gr.components.Component) -> None:
    """Two buttons that put an image there, another one each time."""
    number = gr.State(0)
    with gr.Row():
        for text, image in (("Generated example", generated_image), ("Photograph", photograph)):
            button = gr.Button(text, size="sm")
            button.click(lambda i, image=image: (image(i), i + 1), number, [target, number], api_visibility="private")


def _zero_shot_tab(models: Models) -> None:
    first = next(iter(models.values()))
    with gr.Row():
        with gr.Column():
            chosen = _choice(models)
            image = _image_input("zero-shot-image")
            _examples(image)
            bias = gr.Slider(
                *(-_BIAS, _BIAS, first.seen_bias, 0.1),
                label="Bias of seen classes (gamma)",
                info="subtracted from their logits: higher values favour unseen classes",
            )
            with gr.Row():
                name = gr.Textbox(label="New class", info=_hint(first), max_length=MAX_NAME, elem_id="new-class")
                kind = gr.Radio(["thing", "stuff"], value="thing", label="Kind")
            with gr.Row():
                add = gr.Button("Add the class", variant="primary", elem_id="add-class")
                reset = gr.Button("Forget added classes")
        with gr.Column():
            picture = gr.Image(
                label="Segments; * marks classes no training image shows", elem_id="zero-shot-picture", buttons=_BUTTONS
            )
            said = gr.Markdown(elem_id="zero-shot-said")
            table = gr.Dataframe(headers=["class", "kind", "score", "share"], interactive=False, label="Segments")

    @_told
    def segment(model: str, value: Any, gamma: float) -> tuple[Any, list[list[str]]]:
        if value is None:
            return None, []
        return segment_image(models[model], as_image(value), gamma)

    @_told
    def learn(model: str, new: str, of_kind: str) -> tuple[str, dict[str, Any]]:
        line = learn_class(models[model], new, stuff=of_kind == "stuff")
        return line, gr.update(value="", info=_hint(models[model]))

    @_told
    def forget(model: str) -> tuple[str, dict[str, Any]]:
        models[model].reset()
        return "The model is what it was.", gr.update(info=_hint(models[model]))

    def switch(model: str) -> tuple[float, dict[str, Any]]:
        return models[model].seen_bias, gr.update(info=_hint(models[model]))

    asked, answer = [chosen, image, bias], [picture, table]
    image.change(segment, asked, answer, api_name="segment")
    bias.release(segment, asked, answer, api_visibility="private")
    for happened in (
        add.click(learn, [chosen, name, kind], [said, name], api_name="learn"),
        reset.click(forget, chosen, [said, name], api_visibility="private"),
        chosen.change(switch, chosen, [bias, name], api_visibility="private"),
    ):
        happened.success(segment, asked, answer, api_visibility="private")


def _hint(model: PageModel) -> str:
    names = addable_names(model)
    return f"for example {', '.join(names[:3])}" if names else "no shipped table knows a further class"


def _strokes_tab(models: Models, folder: Path) -> None:
    first = next(iter(models.values()))
    with gr.Row():
        with gr.Column():
            chosen = _choice(models)
            classes = gr.Radio(_class_choices(first), value=0, label="Draw strokes of", elem_id="stroke-class")
            editor = gr.ImageEditor(
                label="Image and strokes",
                type="numpy",
                image_mode="RGBA",
                format="png",
                sources=_SOURCES,
                transforms=(),
                layers=False,
                buttons=_BUTTONS,
                brush=_brush(first, 0),
                elem_id="strokes",
            )
            _examples(editor)
            button = gr.Button("Grow", variant="primary", elem_id="grow")
        with gr.Column():
            picture = gr.Image(label="Labels", elem_id="grown", buttons=_BUTTONS)
            said = gr.Markdown(elem_id="grown-said")
            steps = gr.Gallery(label="Step by step", columns=4, height=220, buttons=_BUTTONS)
            download = gr.DownloadButton("Download the label map", interactive=False, elem_id="label-map")

    @_told_steps
    def grow_steps(model: str, value: dict[str, Any] | None) -> Iterator[tuple[Any, ...]]:
        used = models[model]
        image = as_image(value["background"] if value else None)
        colors = stroke_colors(len(used.class_names))
        grown = grow(used, image, strokes_of(value["layers"] if value else [], image.shape[:2], colors))
        shown = list(zip(grown.pictures, grown.captions, strict=True))
        for step, (drawn, caption) in enumerate(shown, start=1):
            yield drawn, caption, shown[:step], gr.update(interactive=False)
            time.sleep(_STEP_SECONDS)
        path = folder / f"labels_{zlib.crc32(grown.labels.tobytes()):08x}.png"
        save_labels(path, grown.labels, len(used.class_names))
        yield *shown[-1], shown, gr.update(value=str(path), interactive=True)

    def take(model: str, label: int) -> dict[str, Any]:
        return gr.update(brush=_brush(models[model], label))

    def switch(model: str) -> tuple[dict[str, Any], dict[str, Any]]:
        return gr.update(choices=_class_choices(models[model]), value=0), take(model, 0)

    button.click(grow_steps, [chosen, editor], [picture, said, steps, download], api_name="grow")
    classes.change(take, [chosen, classes], editor, api_visibility="private", show_progress="hidden")
    chosen.change(switch, chosen, [classes, editor], api_visibility="private")


def _class_choices(model: PageModel) -> list[tuple[str, int]]:
    return [(name, label) for label, name in enumerate(model.class_names)]


def _brush(model: PageModel, label: int) -> gr.Brush:
    """The brush of a class; its colour says which."""
    color = _hex(stroke_colors(len(model.class_names))[label])
    return gr.Brush(default_size=6, colors=[color], default_color=color, color_mode="fixed")


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _side_by_side_tab(models: Models) -> None:
    with gr.Row():
        with gr.Column(scale=1):
            chosen = gr.CheckboxGroup(list(models), value=list(models), label="Models")
            image = _image_input("compared-image")
            _examples(image)
            button = gr.Button("Compare", variant="primary", elem_id="compare")
        with gr.Column(scale=2):
            pictures = gr.Gallery(label="Pictures", columns=3, elem_id="compared", buttons=_BUTTONS)

    @_told
    def compared(names: list[str], value: Any) -> list[tuple[Any, str]]:
        return compare([models[name] for name in names], as_image(value))

    button.click(compared, [chosen, image], pictures, api_name="compare")
