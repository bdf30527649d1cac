"""The app's endpoints for programs, through gradio_client against a running server."""

from __future__ import annotations

import json
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from served import served

from attnctrl import generate
from attnctrl.app.web.limits import Limits
from attnctrl.pipelines.recipe import Recipe

COMMON = {"model", "seed", "num_inference_steps"}
ENDPOINTS = {
    "generate_set": (["prompts"], {"style", "strength", "size", "blocks", "reference", "caption"} | COMMON, 3),
    "guide_heads": (["prompt"], {"heads", "u", "w", "size"} | COMMON, 5),
    "attention_map": (["prompt", "word"], {"block", "head", "step", "size"} | COMMON, 3),
    "evaluate_methods": ([], {"methods", "sets", "count"} | COMMON, 3),
    "describe": ([], set(), 1),
}
"""By name: what must be given, what may be, and how many outputs there are."""
FEW = {"model": "tiny-sd3", "num_inference_steps": 2}
PICTURE = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def server():
    """The app, with small limits."""
    with served(Limits(upload_mb=1, items=6, letters=60)) as found:
        yield found


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    """A client of it."""
    return Client(server.address, verbose=False, download_files=tmp_path_factory.mktemp("client"))


@pytest.fixture
def ask(client):
    """ask(name, **arguments): the result of an endpoint, in two steps of tiny-sd3 if nothing else is said."""

    def predict(name, **arguments):
        return client.predict(api_name=f"/{name}", **(FEW | arguments))

    return predict


@pytest.fixture
def refused(ask, capfd):
    """refused(name, says, **arguments): the call fails with a sentence that has these words, and no traceback.

    `logs`: whether Gradio itself refuses it, and writes that to the server's log.
    """

    def check(name, says, logs=False, **arguments):
        with pytest.raises(AppError) as fault:
            ask(name, **arguments)
        assert says in str(fault.value)
        assert "\n" not in str(fault.value).strip()
        output = capfd.readouterr()
        assert "Traceback" not in str(fault.value)
        assert logs or "Traceback" not in output.out + output.err

    return check


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def spec(server):
    return httpx.get(f"{server.address}/gradio_api/openapi.json", timeout=30).json()


# --- the contract ---


def test_the_openapi_names_these_endpoints_and_no_other(server):
    called = {path.split("/")[-1] for path in spec(server)["paths"] if "/call/v2/" in path}
    assert called == set(ENDPOINTS)


@pytest.mark.parametrize("name", ENDPOINTS)
def test_every_endpoint_is_typed_and_described(server, client, name):
    required, optional, outputs = ENDPOINTS[name]
    operation = spec(server)["paths"][f"/gradio_api/call/v2/{name}"]["post"]
    properties = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert set(properties) == set(required) | optional
    assert all(one.get("type") in ("string", "number", "integer") for one in properties.values())
    assert operation["summary"].strip()
    assert f"array of {outputs} element" in operation["description"]
    told = client.view_api(return_format="dict")["named_endpoints"][f"/{name}"]
    assert [one["parameter_name"] for one in told["parameters"] if not one["parameter_has_default"]] == required
    assert {one["parameter_name"] for one in told["parameters"] if one["parameter_has_default"]} == optional
    assert all(one["python_type"]["type"] for one in told["parameters"])
    assert len(told["returns"]) == outputs
    assert told["description"].strip()


def test_enumerations_are_what_the_server_offers(server):
    body = spec(server)["paths"]["/gradio_api/call/v2/generate_set"]["post"]["requestBody"]
    properties = body["content"]["application/json"]["schema"]["properties"]
    assert set(properties["model"]["enum"]) == set(server.frame.engine.models)
    assert properties["style"]["enum"] == ["aligned", "naive", "stylealigned", "aligned-gentle", "plain"]


# --- what the endpoints return ---


def test_a_set_is_what_its_recipe_draws(server, ask):
    gallery, data, warned = ask(
        "generate_set", prompts="a fox, comic\na key, comic\n", seed=4, size="48x32", strength=0.5
    )
    recipe = Recipe.model_validate(data)
    assert warned == []
    assert (recipe.prompts, recipe.seed, recipe.num_inference_steps) == (("a fox, comic", "a key, comic"), 4, 2)
    assert recipe.control[0].strength == 0.5
    assert [one["caption"] for one in gallery] == list(recipe.prompts)
    with server.frame.engine.pipe("tiny-sd3") as pipe:
        again = generate(pipe, recipe)
    assert again.recipe.same_as(recipe) == 2
    for one, picture in zip(gallery, again.pictures, strict=True):
        np.testing.assert_array_equal(pixels(one["image"]), np.asarray(picture))


def test_a_picture_leads_a_set(ask, tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "lead.png")
    arguments = {"prompts": "a fox", "size": "32"}
    lead = {"reference": handle_file(tmp_path / "lead.png"), "caption": "noise"}
    led, data, _ = ask("generate_set", **arguments, **lead)
    plain, *_ = ask("generate_set", **arguments, style="plain")
    reference = Recipe.model_validate(data).control[0].references()[0]
    np.testing.assert_array_equal(np.asarray(reference.picture), PICTURE)
    assert reference.caption == "noise"
    assert (pixels(led[0]["image"]) != pixels(plain[0]["image"])).any()


def test_heads_are_perturbed_and_guided(server, ask):
    *pictures, data, _ = ask("guide_heads", prompt="a fox", heads="L2H0", u=1, w=5, size="32")
    plain, perturbed, guided = map(pixels, pictures)
    assert (plain != perturbed).any()
    assert (plain != guided).any()
    recipe = Recipe.model_validate(data)
    assert (recipe.control[0].kind, recipe.control[0].u, recipe.control[0].strength) == ("softpag", 1, 5)
    with server.frame.engine.pipe("tiny-sd3") as pipe:
        np.testing.assert_array_equal(guided, np.asarray(generate(pipe, recipe).pictures[0]))


def test_what_is_too_strong_is_told(ask):
    *_, warned = ask("guide_heads", prompt="a fox", heads="L0H0 L1H1 L2H0 L3H1", u=1, w=20, size="32")
    assert len(warned) == 1
    assert "pictures may burn" in warned[0]


def test_attention_comes_as_a_map_and_figures_of_every_head(ask):
    picture, overlay, data = ask("attention_map", prompt="a red fox", word="fox", block=2, head=1, step=0)
    assert pixels(picture).shape[:2] == (64, 64)
    assert pixels(overlay).std() > 0
    assert set(data) == {"blocks", "statistics", "warnings"}
    for rows in data["statistics"].values():
        assert len(rows) == len(data["blocks"])
    shares = np.array(data["statistics"]["text"]) + np.array(data["statistics"]["image"])
    assert np.allclose(shares, 1, atol=2e-3)


def test_an_evaluation_returns_table_report_and_summary(ask, tmp_path):
    own = tmp_path / "own.jsonl"
    sets = [{"id": f"s{i}", "prompts": [f"a {one}, comic", "a key, comic"]} for i, one in enumerate(["fox", "cat"])]
    own.write_text("\n".join(map(json.dumps, sets)))
    table, page, data = ask("evaluate_methods", methods="plain,alignedgen:strength=0.5", sets=handle_file(own), count=2)
    assert "| " in table
    assert "alignedgen strength=0.5" in table
    assert Path(page).read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html")
    assert "alignedgen strength=0.5" in json.dumps(data)


def test_the_server_describes_itself(server, client):
    told = client.predict(api_name="/describe")
    assert told["models"] == list(server.frame.engine.models)
    assert {"aligned", "softpag"} <= set(told["methods"])
    nag = told["methods"]["nag"]
    assert nag["settings"]["phi"]["default"] == "5.0"
    assert "from 1" in nag["settings"]["phi"]["takes"]
    assert all(one["says"] and one["settings"] for one in told["methods"].values())
    assert told["limits"]["items"] == 6
    assert told["metrics"]
    assert isinstance(told["head_presets"], list)


def test_two_clients_at_once_get_their_own(server, tmp_path):
    def one(seed):
        mine = Client(server.address, verbose=False, download_files=tmp_path / str(seed))
        prompts = f"a fox, comic\na {['key', 'star'][seed]}, comic"
        gallery, data, _ = mine.predict(api_name="/generate_set", prompts=prompts, seed=seed, size="32", **FEW)
        return prompts.splitlines(), gallery, Recipe.model_validate(data)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(one, (0, 1)))
    for seed, (prompts, gallery, recipe) in enumerate(found):
        assert (list(recipe.prompts), recipe.seed) == (prompts, seed)
        with server.frame.engine.pipe("tiny-sd3") as pipe:
            again = generate(pipe, recipe)
        np.testing.assert_array_equal(pixels(gallery[1]["image"]), np.asarray(again.pictures[1]))


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("generate_set", {"prompts": " \n "}, "there is no prompt"),
        ("generate_set", {"prompts": "\n".join(["a fox"] * 9)}, "9 prompts"),
        ("generate_set", {"prompts": "x" * 61}, "61 letters"),
        ("generate_set", {"prompts": "a fox", "size": "4096"}, "at most 128 px"),
        ("generate_set", {"prompts": "a fox", "size": "33"}, "no multiple of"),
        ("generate_set", {"prompts": "a fox", "size": "wide"}, "wide"),
        ("generate_set", {"prompts": "a fox", "num_inference_steps": 1000}, "1000 steps"),
        ("generate_set", {"prompts": "a fox\na key", "blocks": "L99"}, "L99"),
        ("guide_heads", {"prompt": "a fox", "heads": "L99H0"}, "99"),
        ("guide_heads", {"prompt": ""}, "there is no prompt"),
        ("attention_map", {"prompt": "a fox", "word": "house"}, "house"),
        ("attention_map", {"prompt": "a fox", "word": "fox", "block": 99}, "99"),
        ("evaluate_methods", {"methods": "unheard"}, "no method is called"),
        ("evaluate_methods", {"methods": "plain,naive", "count": 4}, "8 items; this server runs at most 6"),
        ("evaluate_methods", {"methods": "aligned:reference=/etc/passwd"}, "files are for the command line"),
        ("evaluate_methods", {"methods": "secret/recipe.json"}, "files are for the command line"),
        ("evaluate_methods", {"methods": "secret/made.png:strength=1"}, "files are for the command line"),
    ],
)
def test_bad_input_gets_a_sentence(refused, name, arguments, says):
    refused(name, says, **arguments)


@pytest.mark.parametrize("name", ["generate_set", "guide_heads", "attention_map", "evaluate_methods"])
def test_models_that_are_not_offered_are_refused(refused, name):
    given = {"generate_set": {"prompts": "a fox"}, "guide_heads": {"prompt": "a fox"}}
    arguments = given.get(name, {"prompt": "a fox", "word": "fox"} if name == "attention_map" else {})
    refused(name, "not in the list of choices", logs=True, model="/etc/passwd", **arguments)


def test_sets_that_name_a_file_of_the_server_are_refused(refused, tmp_path):
    (tmp_path / "own.jsonl").write_text(
        '{"id": "a", "prompts": ["a fox"], "style": "data:", "reference": "/etc/passwd"}'
    )
    refused("evaluate_methods", "inside the file", sets=handle_file(tmp_path / "own.jsonl"))


def test_uploads_are_bounded(server, tmp_path):
    url = f"{server.address}/gradio_api/upload"
    small = httpx.post(url, files={"files": ("a.bin", bytes(1000))}, timeout=30)
    large = httpx.post(url, files={"files": ("a.bin", bytes(1024 * 1024 + 1000))}, timeout=30)
    assert (small.status_code, large.status_code) == (200, 413)


@pytest.mark.parametrize("path", ["/etc/hostname", "pyproject.toml", "tests/app.py"])
def test_files_outside_are_not_served(server, path):
    answer = httpx.get(f"{server.address}/gradio_api/file={path}", timeout=30)
    assert answer.status_code in (403, 404)
    assert (answer.status_code == 403) or not Path(path).exists()


def test_a_file_of_the_server_is_no_reference(server):
    body = {"prompts": "a fox", "reference": {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}, **FEW}
    begun = httpx.post(f"{server.address}/gradio_api/call/v2/generate_set", json=body, timeout=30)
    if begun.status_code == 200:
        event = begun.json()["event_id"]
        answer = httpx.get(f"{server.address}/gradio_api/call/generate_set/{event}", timeout=60)
        assert "event: error" in answer.text
        assert "event: complete" not in answer.text


def test_events_of_the_page_have_no_name(client):
    told = client.view_api(return_format="dict")
    assert set(told["named_endpoints"]) == {f"/{name}" for name in ENDPOINTS}
    assert not told["unnamed_endpoints"]


def test_a_name_and_a_password_are_asked_for():
    with served(auth=("ada", "secret")) as closed:
        assert httpx.get(f"{closed.address}/config").status_code == 401
        assert httpx.post(f"{closed.address}/gradio_api/call/v2/describe", json={}).status_code == 401
        with pytest.raises(ValueError, match="login"):
            Client(closed.address, auth=("ada", "wrong"), verbose=False)
        found = Client(closed.address, auth=("ada", "secret"), verbose=False).predict(api_name="/describe")
        assert "models" in found


def test_the_space_serves_what_its_variables_say(monkeypatch):
    monkeypatch.setenv("ATTNCTRL_MODELS", "tiny-flux")
    monkeypatch.setenv("ATTNCTRL_LIMITS", '{"steps": 5}')
    space = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "huggingface-space" / "app.py"))
    assert space["frame"].engine.models == ("tiny-flux",)
    assert space["frame"].engine.limits.steps == 5
    space["frame"].store.close()
