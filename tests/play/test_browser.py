"""The page in Chromium: playing, the keyboard, the temperature, going back, reality, and what goes wrong."""

import asyncio
import base64
import contextlib
import functools
import http.server
import io
import json
import shutil
import threading
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from worldmodel.play import PlayServer, included_worlds
from worldmodel.play import companion as companion_module
from worldmodel.play.catalog import Playable
from worldmodel.play.companion import Companion
from worldmodel.play.controls import base_name
from worldmodel.play.page import PAGE_FORMAT, PAGE_VERSION
from worldmodel.play.site import WORLDS_FILE, site_files, write_list
from worldmodel.runtime import files

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
(CARTPOLE,) = (each for each in included_worlds() if each.id == "cartpole")
HANGING = {"env": "CartPole-v1", "wrappers": ["hanging_envs.HangingSteps"]}
BYTES = """(state) => ["z", "h", "c"].map((name) => Array.from(new Uint8Array(state[name].slice().buffer)).join()).join(";")
  + [state.seed, state.t, state.total, state.reward, state.termination].join()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium with a profile of its own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    profile = tmp_path_factory.mktemp("profile")
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, headless=True, args=list(FLAGS), viewport={"width": 1100, "height": 900}
        )
        yield context
        context.close()


class Served:
    """A server in a thread with an event loop of its own."""

    def __init__(self, worlds):
        self.server, self.loop = PlayServer(worlds, port=0), asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.do(self.server.start())
        self.address = self.server.address

    def do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def cut(self):
        """Cut all connections."""

        async def close():
            for socket in list(self.server._sockets):
                socket._req.transport.abort()

        self.do(close())

    def close(self):
        self.do(self.server.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    hanging = changed_world(folder / "hanging", lambda _: {"environment": HANGING})
    worlds = [
        CARTPOLE,
        Playable(id="hanging", title="hanging", directory=hanging, trusted=True),
        Playable(id="stranger", title="stranger", directory=hanging),
        Playable(id="image", title="image", directory=image_world(folder / "image")),
        Playable(id="numbers", title="numbers", directory=number_world(folder / "numbers")),
    ]
    made = Served(worlds)
    yield made
    made.close()


def changed_world(folder, change):
    """Copy the included world and change its description."""
    shutil.copytree(CARTPOLE.directory, folder)
    content = files.read_json(folder / "page.json", format=PAGE_FORMAT, version=PAGE_VERSION)
    content = {**content, **change(content)}
    del content["version"]
    files.write_json(folder / "page.json", content, format=PAGE_FORMAT, version=PAGE_VERSION)
    return folder


def number_world(folder):
    """The included world, drawn as curves, as an environment without a drawing is."""
    numbers = [{"name": name, "leaf": "observation", "index": index} for index, name in enumerate("abcd")]
    return changed_world(folder, lambda _: {"view": {"kind": "numbers", "numbers": numbers}})


def image_world(folder):
    """The included world with a decoder of images: row d of an image of 4 rows is as bright as z[d] is large."""
    onnx = pytest.importorskip("onnx", reason="needs worldmodel[onnx]")
    helper, kind = onnx.helper, onnx.TensorProto

    def change(content):
        weights = np.kron(np.eye(4, dtype=np.float32), np.ones((1, 15), np.float32)) * 50  # (4, 4 * 5 * 3)
        constants = {"w": weights, "half": np.float32(128), "low": np.float32(0), "high": np.float32(255)}
        constants["shape"] = np.array([-1, 4, 5, 3])
        nodes = [
            helper.make_node("MatMul", ["z", "w"], ["a"]),
            helper.make_node("Add", ["a", "half"], ["b"]),
            helper.make_node("Clip", ["b", "low", "high"], ["c"]),
            helper.make_node("Reshape", ["c", "shape"], ["d"]),
            helper.make_node("Cast", ["d"], ["observation"], to=kind.UINT8),
        ]
        z = helper.make_tensor_value_info("z", kind.FLOAT, ["batch", 4])
        seen = helper.make_tensor_value_info("observation", kind.UINT8, ["batch", 4, 5, 3])
        initial = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
        graph = helper.make_graph(nodes, "decoder", [z], [seen], initial)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.save(model, folder / "decoder.onnx")
        decoder = {**content["files"]["decoder"], "sha256": files.digest(folder / "decoder.onnx")}
        image = {"leaf": "observation", "height": 4, "width": 5, "channels": 3, "channels_first": False}
        return {
            "files": {**content["files"], "decoder": decoder},
            "view": {"kind": "image", "image": image, "numbers": []},
            "sliders": [{"index": index, "low": -2.0, "high": 2.0} for index in range(4)],
        }

    return changed_world(folder, change)


def until(page, expression, seconds=60.0):
    """Wait until JavaScript is true; the page's policy forbids playwright's own way, which evaluates a string."""
    end = time.monotonic() + seconds
    while not (found := page.evaluate(expression)):
        assert time.monotonic() < end, f"expected {expression}, got {found} after {seconds} s"
        page.wait_for_timeout(20)
    return found


def opened(browser, address, *, moving=True):
    """Open a page and wait until the dream moves."""
    page = browser.new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address)
    if moving:
        until(page, "(globalThis.player?.state?.t ?? 0) > 2")
    return page


@pytest.fixture
def page(browser, served):
    made = opened(browser, served.address)
    yield made
    assert made.errors == []
    made.close()


def pause(page):
    if page.evaluate("player.playing"):
        page.keyboard.press(" ")
    until(page, "!player.busy")


def press_step(page):
    t = page.evaluate("player.state.t")
    page.keyboard.press(".")
    until(page, f"player.state.t === {t + 1}")


DRAWINGS = {  # environment: states that show each side, and how an observation is made of a state
    "CartPole-v1": ([[0.9, 0, 0.2, 0], [-1.5, 0, -0.4, 0]], lambda s: s),
    "Pendulum-v1": ([[0.7, 0], [-2.5, 0]], lambda s: [np.cos(s[0]), np.sin(s[0]), s[1]]),
    "MountainCar-v0": ([[-1.0, 0], [0.2, 0]], lambda s: s),
    "MountainCarContinuous-v0": ([[-0.5, 0]], lambda s: s),
    "Acrobot-v1": (
        [[0.5, 1.2, 0, 0], [-1.5, 0.4, 0, 0]],
        lambda s: [np.cos(s[0]), np.sin(s[0]), np.cos(s[1]), np.sin(s[1]), s[2], s[3]],
    ),
}


def test_classic_control_is_drawn_as_gymnasium_draws_it(page):
    pytest.importorskip("pygame", reason="needs worldmodel[classic-control]")
    image = pytest.importorskip("matplotlib.image", reason="needs worldmodel[plots]")
    for name, state, observe in ((name, state, observe) for name, (states, observe) in DRAWINGS.items() for state in states):
        env = gym.make(name, render_mode="rgb_array")
        env.reset(seed=0)
        env.unwrapped.state, env.unwrapped.last_u = np.array(state, float), None
        expected = env.render().astype(float)
        env.close()
        address = page.evaluate(
            """async ([name, seen]) => {
              const canvas = document.createElement("canvas");
              (await import("./classic.js")).drawClassic(canvas, name, seen, null);
              return canvas.toDataURL();
            }""",
            [base_name(name), [float(number) for number in observe(state)]],
        )
        found = 255 * image.imread(io.BytesIO(base64.b64decode(address.partition(",")[2])))[..., :3].astype(float)
        assert found.shape == expected.shape
        differs = np.abs(found - expected).max(axis=2) > 128  # edges are smoothed in other ways
        shown = (expected != 255).any(axis=2)
        assert differs.sum() < 0.05 * shown.sum(), (name, state)


def test_the_agent_plays_and_the_page_shows_what_it_dreams(page):
    assert page.evaluate("player.driver") == "agent"
    until(page, "player.state.t > 20 || player.state.ended")
    pause(page)
    picture = page.evaluate("document.getElementById('dream').toDataURL()")
    status = page.text_content("#dream-status")
    assert status.startswith(f"step {page.evaluate('player.state.t')}")
    press_step(page)
    assert page.evaluate("document.getElementById('dream').toDataURL()") != picture
    assert page.evaluate("player.dream.states.slice(1).map((one) => one.reward)") == [1] * page.evaluate("player.state.t")


def test_arrow_keys_take_control_and_one_key_hands_it_over_and_back(page):
    page.keyboard.press("a")
    assert page.evaluate("player.driver") == "human"
    page.keyboard.press("a")
    assert page.evaluate("player.driver") == "agent"
    page.keyboard.down("ArrowLeft")
    assert page.evaluate("player.driver") == "human"
    pause(page)
    page.keyboard.press("n")
    until(page, "player.state.t === 0")
    for _ in range(3):
        press_step(page)
    assert page.evaluate("player.dream.states.slice(1).map((one) => Number(one.action.action[0]))") == [0, 0, 0]
    page.keyboard.up("ArrowLeft")
    for _ in range(4):
        press_step(page)
    assert page.evaluate("player.dream.states.slice(4).map((one) => Number(one.action.action[0]))") == [1, 0, 1, 0]


def test_a_button_acts_while_it_is_touched(page):
    pause(page)
    page.keyboard.press("n")
    until(page, "player.state.t === 0")
    box = page.locator("button.action", has_text="right").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    assert page.evaluate("[player.driver, player.controls.held]") == ["human", ["ArrowRight"]]
    page.mouse.up()
    assert page.evaluate("player.controls.held") == []


def test_ten_steps_back_restore_the_exact_state_and_the_same_dream_follows(page):
    until(page, "player.state.t > 15 || player.state.ended")
    pause(page)
    t = page.evaluate("player.state.t")
    states = page.evaluate(f"player.dream.states.slice(-11).map({BYTES})")
    picture = "document.getElementById('dream').toDataURL()"
    seen = page.evaluate(picture)
    page.keyboard.press("b")
    assert page.evaluate("player.state.t") == t - 10
    assert page.evaluate(f"({BYTES})(player.state)") == states[0]
    for expected in states[1:]:
        page.keyboard.press(".")
        until(page, f"({BYTES})(player.state) === '{expected}'")
    assert page.evaluate(picture) == seen


def test_the_temperature_acts_at_the_next_step(page):
    pause(page)
    page.keyboard.press("n")
    until(page, "player.state.t === 0")
    found = []
    for presses in (("Home",), ("Home",), ("End",)):
        slider = page.locator("#temperature")
        slider.focus()
        for key in presses:
            page.keyboard.press(key)
        page.evaluate("document.activeElement.blur()")
        press_step(page)
        found.append(page.evaluate("[player.dream.temperature, Array.from(player.state.z)]"))
        page.keyboard.press("b")
    assert [temperature for temperature, _ in found] == [0, 0, 3]
    assert found[0] == found[1]
    assert found[2][1] != found[0][1]
    page.keyboard.press("-")
    assert page.evaluate("[player.dream.temperature, document.getElementById('temperature-value').textContent]") == [
        2.9,
        "2.90",
    ]


def test_the_real_environment_follows_with_the_same_actions_and_goes_back_too(page):
    for _ in range(5):  # while the dream goes on
        page.keyboard.press("r")
        until(page, "!player.starting")
    page.evaluate("Promise.all([player.start(), player.start()])")  # the second joins the first
    until(page, "player.realState && player.state.t > 14")
    pause(page)
    until(page, "player.behind === 0")
    seed = page.evaluate("player.state.seed % 2 ** 31")
    path = "player.dream.states.map((one) => one.real.observation.observation)"
    actions = page.evaluate("player.dream.states.slice(1).map((one) => Number(one.action.action[0]))")
    env = gym.make("CartPole-v1")
    expected = [env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions)]
    np.testing.assert_allclose(page.evaluate(path), np.array(expected, float), rtol=0, atol=0)
    start = page.evaluate("Array.from(player.dream.states[0].observation.observation)")
    np.testing.assert_allclose(start, expected[0], atol=1e-6)  # the dream begins where reality does
    page.keyboard.press("b")
    for _ in range(10):
        press_step(page)
    until(page, "player.behind === 0")
    assert page.evaluate(path) == np.array(expected, float).tolist()
    assert page.locator("#real").is_visible()
    assert page.text_content("#message") == ""
    env.close()


def test_a_lost_connection_is_said_and_the_dream_goes_on(page, served):
    page.keyboard.press("r")
    until(page, "player.realState")
    served.cut()
    until(page, "document.getElementById('message').textContent.includes('was lost')")
    assert page.evaluate("document.getElementById('real-figure').hidden")
    page.evaluate("globalThis.before = player.stamps.at(-1)")
    until(page, "player.stamps.at(-1) > before")
    until(page, "document.getElementById('message').textContent === 'Connected again.'")
    page.keyboard.press("r")
    until(page, "player.realState")


def test_a_slow_environment_holds_the_dream_back_but_not_the_page(page, monkeypatch):
    act = Companion.act
    monkeypatch.setattr(Companion, "act", lambda self, action: (time.sleep(0.1), act(self, action))[1])
    page.keyboard.press("r")
    until(page, "player.realState && player.state.t > 12")
    assert page.evaluate("player.behind") <= 8
    page.keyboard.press(" ")
    assert not page.evaluate("player.playing")
    until(page, "player.behind === 0")


def test_an_environment_that_hangs_is_hidden_and_the_dream_goes_on(browser, served, monkeypatch):
    page = opened(browser, f"{served.address}?world=hanging")
    page.keyboard.press("r")
    until(page, "player.realState && player.state.t > 2")
    monkeypatch.setattr(companion_module, "STEP_SECONDS", 0.5)
    until(page, "document.getElementById('message').textContent.includes('the dream goes on without reality')")
    assert "expected an end of step within" in page.text_content("#message")
    assert not page.locator("#real").is_visible()
    t = page.evaluate("player.state.t")
    until(page, f"player.state.t > {t} || player.state.ended")
    page.close()


def test_a_stranger_s_environment_is_not_built_and_the_page_says_how_to_trust_it(browser, served):
    page = opened(browser, f"{served.address}?world=stranger")
    page.keyboard.press("r")
    until(page, "document.getElementById('message').textContent.includes('--trust-env')")
    assert "hanging_envs.HangingSteps" in page.text_content("#message")
    assert page.text_content("#show-real") == "Show reality"
    until(page, "player.state.t > 2")
    page.close()


def test_a_dream_is_recorded_as_a_gif(page, served):
    pytest.importorskip("imageio_ffmpeg", reason="needs worldmodel[video]")
    page.select_option("#record-format", "gif")
    page.click("#record")
    until(page, "document.getElementById('message').textContent === 'Recording.'")
    page.wait_for_timeout(300)
    with page.expect_download() as download:
        page.click("#record")
    assert Path(download.value.path()).read_bytes().startswith(b"GIF89a")


def test_sliders_of_z_change_the_image_and_the_dream_goes_on_from_there(browser, served):
    page = opened(browser, served.address + "?world=image")
    pause(page)
    page.click("#latents summary")
    row = "Array.from(document.getElementById('dream').getContext('2d').getImageData(0, 2, 5, 1).data.slice(0, 3))"
    slider = page.locator("#sliders input").nth(2)
    for key, level in (("End", 228), ("Home", 28)):
        slider.focus()
        page.keyboard.press(key)
        until(page, f"JSON.stringify({row}) === '[{level},{level},{level}]'")
    assert page.evaluate("player.state.z[2]") == -2
    page.evaluate("document.activeElement.blur()")
    press_step(page)
    assert page.evaluate("player.state.z[2]") < -1
    assert page.errors == []
    page.close()


def test_numbers_without_a_drawing_are_curves_with_a_band(browser, served):
    page = opened(browser, served.address + "?world=numbers")
    pause(page)
    bands = page.evaluate("player.dream.states.slice(1).map((one) => one.band.observation)")
    assert np.shape(bands)[1:] == (4, 2)
    assert (np.diff(bands, axis=2) >= 0).all()
    assert page.locator("#numbers canvas").count() == 4
    assert page.text_content("#status").startswith(f"Dream: step {page.evaluate('player.state.t')}")
    assert page.evaluate("document.getElementById('stage').hidden")
    page.close()


def test_the_page_fits_a_phone_and_every_control_has_a_name(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    small = page.evaluate(
        "[...document.querySelectorAll('button')].filter((one) => one.offsetParent && one.offsetHeight < 40).length"
    )
    assert small == 0
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, select, canvas')].filter((one) => !(one.ariaLabel"
        " || (one.tagName !== 'SELECT' && one.textContent.trim()) || one.labels?.length)).map((one) => one.outerHTML)"
    )
    assert unnamed == []
    page.set_viewport_size({"width": 1100, "height": 900})


def test_light_and_dark_mode_have_readable_colours(page):
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours = page.evaluate(
            "['body', '#subtitle', '#pause', '#step'].map((name) => getComputedStyle(document.querySelector(name)))"
            ".map((style) => [style.color, style.backgroundColor])"
        )
        below = colours[0][1]
        for ink, paper in colours:
            assert contrast(ink, below if paper == "rgba(0, 0, 0, 0)" else paper) >= 4.5, (scheme, ink, paper)
    page.emulate_media(color_scheme="light")


def contrast(ink, paper):
    """Contrast ratio of WCAG 2."""

    def luminance(colour):
        rgb = np.array([int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255
        return np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    low, high = sorted([luminance(ink), luminance(paper)])
    return (high + 0.05) / (low + 0.05)


@contextlib.contextmanager
def static(folder):
    """Serve a directory as any HTTP server does."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The included world as a page."""
    folder = tmp_path_factory.mktemp("page")
    for name, file in site_files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    shutil.copytree(CARTPOLE.directory, folder / "worlds" / "cartpole")
    write_list(folder / WORLDS_FILE, [{"id": "cartpole", "title": "CartPole", "path": "worlds/cartpole/", "ready": True}])
    return folder


def test_a_published_page_needs_an_http_server_and_nothing_else(browser, published):
    with static(published) as address:
        asked = []
        browser.on("request", lambda request: asked.append(request.url))
        page = opened(browser, address)
        assert not page.locator("#show-real").is_visible()
        assert not page.locator("#record").is_visible()
        assert {url.split("/")[2] for url in asked if not url.startswith("data:")} == {address.split("/")[2]}
        assert page.errors == []
        page.close()


@pytest.mark.parametrize("change", ["damaged", "newer", "missing"])
def test_a_page_with_a_wrong_file_says_so_in_one_line(browser, published, tmp_path, change):
    folder = tmp_path / "page"
    shutil.copytree(published, folder, copy_function=lambda a, b: Path(b).symlink_to(a))
    world = folder / "worlds" / "cartpole"
    step, text = (world / "step.onnx").read_bytes(), (world / "page.json").read_text()
    name, content, expected = {
        "damaged": ("step.onnx", step[:5000] + bytes(50) + step[5050:], "got a damaged or changed one; export again"),
        "newer": ("page.json", json.dumps({**json.loads(text), "version": 2}).encode(), "expected version 1, got 2"),
        "missing": ("decoder.onnx", None, "expected a file, got HTTP 404; export the page again"),
    }[change]
    (world / name).unlink()
    if content is not None:
        (world / name).write_bytes(content)
    with static(folder) as address:
        page = opened(browser, address, moving=False)
        until(page, f"document.getElementById('message').textContent.includes('{expected}')")
        assert "error" in page.get_attribute("#message", "class")
        page.close()


def test_a_page_of_another_origin_reaches_nothing(browser, served, published):
    with static(published) as address:
        page = opened(browser, address + "worlds.json", moving=False)  # its policy is not that of the page
        found = page.evaluate(
            """async (address) => {
              const read = await fetch(address + "worlds.json").then(() => "read", () => "refused");
              const opaque = fetch(address + "worlds.json", { mode: "no-cors" });
              const sent = await opaque.then((answer) => answer.type, () => "refused");
              const socket = await new Promise((resolve) => {
                const socket = new WebSocket(address.replace("http", "ws") + "ws");
                socket.onopen = () => resolve("open");
                socket.onerror = () => resolve("refused");
              });
              return [read, sent, socket];
            }""",
            served.address,
        )
        assert found == ["refused", "refused", "refused"]
        page.close()
