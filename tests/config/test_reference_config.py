"""Configuration files of arcface_torch as recipes: the published values come out, and nothing is executed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from app.config.options import load_recipe, parse_arguments
from app.config.recipe import RecipeError
from app.training.schedule import learning_rate

HEAD = "from easydict import EasyDict as edict\n\nconfig = edict()\n"
PUBLISHED = {
    "ms1mv3_r50": """
config.margin_list = (1.0, 0.5, 0.0)
config.network = "r50"
config.resume = False
config.output = None
config.embedding_size = 512
config.sample_rate = 1.0
config.fp16 = True
config.momentum = 0.9
config.weight_decay = 5e-4
config.batch_size = 128
config.lr = 0.1
config.verbose = 2000
config.dali = False
config.num_classes = 93431
config.num_image = 5179510
config.num_epoch = 20
config.warmup_epoch = 0
config.val_targets = ['lfw', 'cfp_fp', "agedb_30"]
""",
    "wf42m_pfc03_40epoch_8gpu_vit_b": """
config.margin_list = (1.0, 0.0, 0.4)
config.network = "vit_b_dp005_mask_005"
config.sample_rate = 0.3
config.fp16 = True
config.weight_decay = 0.1
config.batch_size = 256
config.gradient_acc = 12  # a total of 256 x 12 on each of 8 devices
config.optimizer = "adamw"
config.lr = 0.001
config.num_classes = 2059906
config.num_image = 42474557
config.num_epoch = 40
config.warmup_epoch = config.num_epoch // 10
config.val_targets = []
""",
    "3millions": """
'''Speed only.'''
config.margin_list = (1.0, 0.0, 0.4)
config.network = "mbf"
config.sample_rate = 0.1
config.fp16 = True
config.batch_size = 256 * 2
config.rec = "synthetic"
config.num_classes = 30 * 10000
config.num_image = 100000
config.num_epoch = 30
config.warmup_epoch = -1
config.val_targets = []
""",
    "wf42m_pfc02_vit_h": """
config.margin_list = (1.0, 0.0, 0.4)
config.network = "vit_h"
config.sample_rate = 0.5
config.fp16 = True
config.weight_decay = 0.1
config.batch_size = 768
config.optimizer = "adamw"
config.lr = 0.001
config.dali = True
config.dali_aug = True
config.num_classes = 2059906
config.num_image = 42474557
config.num_epoch = 16
config.warmup_epoch = 2
config.val_targets = []
""",
}


def write(folder: Path, text: str, name: str = "ours.py") -> str:
    (folder / name).write_text(HEAD + text)
    return str(folder / name)


@pytest.mark.filterwarnings("ignore:.*has no effect")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_give_the_published_recipes(tmp_path: Path, name: str) -> None:
    assert load_recipe(write(tmp_path, PUBLISHED[name], f"{name}.py")) == load_recipe(name)


def test_it_is_a_recipe_like_any_other(tmp_path: Path) -> None:
    path = write(tmp_path, 'config.rec = "/data/faces"\nconfig.batch_size = 64\nconfig.dali_aug = True')
    recipe = parse_arguments(["--recipe", path, "--train.batch-size", "32", "--name", "x"])
    assert (recipe.name, recipe.data.url, recipe.train.batch_size) == ("x", "/data/faces", 32)
    assert recipe.data.augment == "reference"
    older = load_recipe(write(tmp_path, 'config.loss = "cosface"'))
    assert (older.head.m1, older.head.m2, older.head.m3) == (1.0, 0.0, 0.4)
    assert replace(load_recipe(write(tmp_path, "config.seed = 2048")), name="custom") == replace(
        parse_arguments([]), name="custom"
    )


def test_what_has_no_effect_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, 'config.lr = 0.2\nconfig.wandb_key = "0123456789abcdef"')
    with pytest.warns(UserWarning, match=r"line 5: config\.wandb_key has no effect: keys come from") as caught:
        load_recipe(path)
    assert "0123456789abcdef" not in str(caught[0].message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config.lr = __import__('os').getpid()", r"line 4: \"__import__\('os'\)\.getpid\(\)\" is neither a literal"),
        ("import os\nos.abort()", "line 5: only config.NAME = VALUE is read; nothing is executed"),
        ("while True: config.lr = 1", "line 4: only config.NAME"),
        ("config.batch_sise = 1", r"line 4: unknown setting config\.batch_sise: did you mean 'batch_size'\?"),
        ("config.qqq = 1", r"line 4: unknown setting config\.qqq: remove it"),
        ("config.lr = config.nothing * 2", "line 4: 'config.nothing' is neither"),
        ("config.lr = 1 / 0", "line 4: division by zero"),
        ("config.lr = 'a' * 1000000000", "line 4: .* is neither a literal"),
        ("config.loss = 'softmax'", r"line 4: config\.loss cannot be 'softmax'"),
        ("config.margin_list = 3", r"line 4: config\.margin_list cannot be 3"),
        ("config.batch_size = 'many'", "train.batch_size must be a whole number"),
        ("config.lr = ", "not a configuration module"),
        ("", "sets nothing"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, text))


BRANCHES = """
config.dataset = "emore"
config.lr = 0.1
config.output = "tmp"
if config.dataset == "emore":
    config.rec = "/train_tmp/faces_emore"
    config.num_epoch = 16
    config.warmup_epoch = -1
    config.val_targets = ["lfw"]

    def lr_step_func(epoch):
        return ((epoch + 1) / (4 + 1)) ** 2 if epoch < config.warmup_epoch else 0.1 ** len(
            [m for m in [8, 14] if m - 1 <= epoch])
    config.lr_func = lr_step_func

elif config.dataset in ("glint360k", "other") and not config.lr > 1:
    config.rec = "/train_tmp/glint360k"
    config.num_epoch = 20
else:
    config.rec = __import__("os").getcwd()
"""


@pytest.mark.filterwarnings("ignore:.*has no effect")
def test_the_branches_and_step_functions_of_2021_are_read(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, BRANCHES))
    assert (recipe.data.url, recipe.train.epochs, recipe.verify.sets) == ("/train_tmp/faces_emore", 16, ("lfw",))
    assert (recipe.optim.schedule, recipe.optim.milestones, recipe.optim.gamma) == ("steps", ("7", "13"), 0.1)
    other = load_recipe(write(tmp_path, BRANCHES.replace('dataset = "emore"', 'dataset = "glint360k"')))
    assert (other.data.url, other.train.epochs, other.optim.schedule) == ("/train_tmp/glint360k", 20, "poly")
    with pytest.raises(RecipeError, match="neither a literal"):
        load_recipe(write(tmp_path, BRANCHES.replace('dataset = "emore"', 'dataset = "mine"')))


def test_the_rate_falls_as_the_function_says(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, BRANCHES))
    for epoch in range(16):
        expected = 0.1 * 0.1 ** len([m for m in [8, 14] if m - 1 <= epoch])  # the file's own function
        for step in (10 * epoch, 10 * epoch + 9):
            assert learning_rate(recipe.optim, step, 160, 10) == pytest.approx(expected)
    steps = load_recipe(write(tmp_path, "config.decay_epoch = [10, 16, 22]")).optim
    assert learning_rate(steps, 99, 250, 10) == pytest.approx(0.1)
    assert learning_rate(steps, 100, 250, 10) == pytest.approx(0.01)
    assert learning_rate(steps, 220, 250, 10) == pytest.approx(0.0001)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("config.batch_size = 2 ** 7", "train.batch_size", 128),
        ("config.num_image = int(5e6)", "data.num_images", 5_000_000),
        ("config.num_image = 1_000 * 3 - -5 % 3", "data.num_images", 2999),
        ("config.lr = float(1) / 4", "optim.lr", 0.25),
        ("config.lr = 0.1 if 3 > 2 else 0.2", "optim.lr", 0.1),
        ("config['lr'] = 0.3", "optim.lr", 0.3),
        ('config = edict({"lr": 0.4})', "optim.lr", 0.4),
        ("config = edict(lr=0.5)", "optim.lr", 0.5),
        ('config.network = "iresnet50"', "model.backbone", "r50"),
        ("config.lr = 0.1  # 学习率", "optim.lr", 0.1),
        ("root = '/data'\nconfig.rec = root + '/faces'", "data.url", "/data/faces"),
        ("import os\nconfig.rec = os.path.join('/data', 'faces')", "data.url", "/data/faces"),
        ("import os.path as osp\nroot = '/data'\nconfig.rec = osp.join(root, 'a', 'b')", "data.url", "/data/a/b"),
        (
            "from pathlib import Path\nconfig.rec = str(Path('/data') / 'faces' / 'ms1m')",
            "data.url",
            "/data/faces/ms1m",
        ),
        (
            "import pathlib\nroot = pathlib.Path('/data', 'faces')\nconfig.rec = root / 'ms1m'",
            "data.url",
            "/data/faces/ms1m",
        ),
        ("config.decay_epoch = [e * 2 for e in (4, 7)]", "optim.milestones", ("8", "14")),
        ("config.decay_epoch = [e for e in range(20) if e in (8, 14)]", "optim.milestones", ("8", "14")),
        ("config.decay_epoch = list(range(8, 20, 6))", "optim.milestones", ("8", "14")),
        ("sets = ['lfw', 'x']\nconfig.val_targets = [s for s in sets if s != 'x']", "verify.sets", ("lfw",)),
        ("year = 2022\nconfig.rec = f'/data/{year}'", "data.url", "/data/2022"),
        ("config.rec = '/data/%s_%d' % ('a', 3)", "data.url", "/data/a_3"),
        ("config.rec = '/data/{}/{}'.format('a', 3)", "data.url", "/data/a/3"),
        ("bs = gpus = 8\nconfig.batch_size = bs * gpus", "train.batch_size", 64),
        ("config.pretrain_model_path = None\nconfig.lr = 0.2", "optim.lr", 0.2),
        ("config.batch_size: int = 64", "train.batch_size", 64),
        ("config.batch_size = 64\nconfig.batch_size *= 2", "train.batch_size", 128),
        ("config.lr = config.weight_decay = 0.2", "optim.weight_decay", 0.2),
        ("config.update({'lr': 0.3})", "optim.lr", 0.3),
        ("config.update(lr=0.3)", "optim.lr", 0.3),
        ("setattr(config, 'lr', 0.3)", "optim.lr", 0.3),
        ("config.lr = max(0.1, 0.2) + min(1, 2)", "optim.lr", 1.2),
        ("config.num_image = round(1.5e6)", "data.num_images", 1_500_000),
        ("config.lr = 0.2 if config.get('fp16') is None else 0.3", "optim.lr", 0.2),
        ("config.fp16 = True\nconfig.lr = 0.2 if config.get('fp16', False) else 0.3", "optim.lr", 0.2),
        ("if __name__ == '__main__':\n    print(config)\nconfig.lr = 0.2", "optim.lr", 0.2),
        ("if True:\n\tconfig.lr = 0.2", "optim.lr", 0.2),
        ("print('ours'); config.lr = 0.2", "optim.lr", 0.2),
        ("here = __import__('os').getcwd()\nconfig.lr = 0.2", "optim.lr", 0.2),
        ("config.optimizer = 'AdamW'", "optim.name", "adamw"),
        ("config.num_image = 'forget'", "data.num_images", 0),
        ("config.num_image = 17091657", "data.num_images", 17_091_657),
        ("config.val_targets = None", "verify.sets", ()),
        ("config.val_targets = ('lfw',) + ('cfp_fp',)", "verify.sets", ("lfw", "cfp_fp")),
        ("config.interclass_filtering_threshold = None", "head.interclass_filtering", 0.0),
        ("config.decay_epoch = [8, 14]", "optim.milestones", ("8", "14")),
        ("config.lr_func = lambda e: 0.1 ** len([m for m in [8, 14] if m - 1 <= e])", "optim.milestones", ("7", "13")),
        ("config = {'lr': 0.3}", "optim.lr", 0.3),
        ("config.lr, config.momentum = 0.3, 0.8", "optim.lr", 0.3),
        ("a, b = 1, 2\nconfig.lr = 0.1 * b", "optim.lr", 0.2),
        ("roots = {'a': '/data'}\nconfig.rec = roots['a']", "data.url", "/data"),
        ("root = '/data'\nroots = {'a': root + '/x'}\nconfig.rec = roots['a']", "data.url", "/data/x"),
        ("rates = [0.1, 0.2]\nconfig.lr = rates[-1]", "optim.lr", 0.2),
        ("config.fp16 = not False", "train.precision", "fp16"),
        ("config.rec = None or '/data'", "data.url", "/data"),
        ("config.fp16 = 3 > 2 and True", "train.precision", "fp16"),
        ("def helper(x):\n    return x\nconfig.lr = 0.2", "optim.lr", 0.2),
        ("config.lr = open('x')\nconfig.lr = 0.2", "optim.lr", 0.2),
        ("import os\nconfig.rec = os.environ.get('NOT_SET_ANYWHERE', '/data') + '/faces'", "data.url", "/data/faces"),
        ("import os\nconfig.batch_size = int(os.getenv('NOT_SET_ANYWHERE', 64))", "train.batch_size", 64),
        ("import os\nconfig.rec = os.environ.get('NOT_SET_ANYWHERE') or '/data'", "data.url", "/data"),
        ("config.m = 0.4\nconfig.margin_list = (1.0, 0.0, config.m)", None, None),
    ],
)
def test_what_people_write_is_read(tmp_path: Path, text: str, field: str | None, value: object) -> None:
    if field is None:
        with pytest.raises(RecipeError, match=r"unknown setting config\.m"):
            load_recipe(write(tmp_path, text))
        return
    (tmp_path / "bom.py").write_bytes(b"\xef\xbb\xbf" + (HEAD + text).replace("\n", "\r\n").encode())
    section, name = field.split(".")
    for path in (write(tmp_path, text), str(tmp_path / "bom.py")):
        assert getattr(getattr(load_recipe(path), section), name) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("os.environ['NOT_SET_ANYWHERE']", "NOT_SET_ANYWHERE is not set in the environment; set it"),
        ("os.environ['WANDB_API_KEY']", "WANDB_API_KEY looks like a secret"),
        ("os.getenv('AWS_SECRET_ACCESS_KEY', '')", "AWS_SECRET_ACCESS_KEY looks like a secret"),
        ("'https://host/' + os.environ.get('DB_PASSWORD')", "DB_PASSWORD looks like a secret"),
        ("0.1 * int(os.environ['WORLD_SIZE'])", "WORLD_SIZE is not the same for all processes"),
        ("os.environ.get('LOCAL_RANK', 0)", "LOCAL_RANK is not the same for all processes"),
        ("os.environ.get('A', 'b', 'c')", "is neither a literal"),
        ("os.environ", "is neither a literal"),
        ("str(os.environ)", "is neither a literal"),
        ("{'a': 1}['b']", "there is no such item"),
        ("[1, 2][2]", "there is no such item"),
        ("'abc'['a']", "is neither a literal"),
        ("3[0]", "is neither a literal"),
    ],
)
def test_what_the_environment_and_lists_do_not_say_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    for name in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "4711")
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(write(tmp_path, f"import os\nconfig.rec = {text}"))
    assert "4711" not in str(caught.value)


def test_the_environment_is_asked_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACES_ROOT", "/mnt/faces")
    for asked in ("os.environ['FACES_ROOT']", "os.environ.get('FACES_ROOT', '/data')", "os.getenv('FACES_ROOT')"):
        path = write(tmp_path, f"import os\nconfig.rec = os.path.join({asked}, 'ms1mv3')")
        with pytest.warns(UserWarning, match=r"line 5: FACES_ROOT is taken from the environment"):
            assert load_recipe(path).data.url == "/mnt/faces/ms1mv3"


def test_what_has_no_effect_need_not_be_read(tmp_path: Path) -> None:
    text = "from datetime import datetime\nconfig.output = f'runs/{datetime.now():%Y}'\nconfig.lr = 0.2"
    with pytest.warns(UserWarning, match=r"config\.output has no effect"):
        assert load_recipe(write(tmp_path, text)).optim.lr == 0.2
    with pytest.raises(RecipeError, match=r"line 5: .*config\.output"):
        load_recipe(write(tmp_path, "config.output = open('x')\nconfig.rec = config.output"))


def test_settings_of_a_base_file_hold_where_the_file_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the reference's get_config: its own base.py first; files may also go on from another by name."""
    write(tmp_path, "config.lr = 0.02\nconfig.batch_size = 64\nconfig.output = 'x'\nconfig.wandb_key = 'X'", "base.py")
    ours = write(tmp_path, "config.batch_size = 32")
    recipe = load_recipe(ours)
    assert (recipe.optim.lr, recipe.train.batch_size, recipe.name) == (0.02, 32, "ours")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("ours.py").optim.lr == 0.02
    write(tmp_path, "config.momentum = 0.8\nconfig.num_epoch = 30", "common.py")
    text = "from configs.common import config\nconfig.warmup_epoch = config.num_epoch // 10\nconfig.lr = 0.3"
    (tmp_path / "ours.py").write_text(text)
    optim = load_recipe(ours).optim
    assert (optim.momentum, optim.warmup_epochs, optim.lr) == (0.8, 3.0, 0.3)
    (tmp_path / "ours.py").write_text(text.replace("common", "nowhere"))
    with pytest.raises(RecipeError, match=r"ours\.py, line 1: its config is that of nowhere\.py, which is not beside"):
        load_recipe(ours)
    write(tmp_path, "config.batch_sise = 64", "base.py")
    with pytest.raises(RecipeError, match=r"base\.py, line 4: unknown setting config\.batch_sise"):
        load_recipe(write(tmp_path, "config.lr = 0.1"))


@pytest.mark.parametrize(
    "text",
    [
        "config.lr = 9 ** 9 ** 9",
        "a = 'a' * 9\n" + "a = a + a\n" * 40 + "config.rec = a",
        "a = [0]\n" + "a = [a, a]\n" * 40 + "config.margin_list = a",
        "a = [0]\n" + "a = [a, a]\n" * 40 + "config.rec = f'{a}'",
        "a = {0: 0}\n" + "a = {0: a, 1: a}\n" * 40 + "config.rec = f'{a}'",
        "config.rec = '%999999999d' % 1",
        "config.rec = '{:>999999999}'.format(1)",
        "config.rec = f'{1:>999999999}'",
        "config.rec = f'{open!r}'",
        "here = __import__('os').getcwd()\nconfig.rec = here",
        "config.rec = __import__('os').path.join('a')",
        "config.lr = max([1, 2])",
        "config.rec = Path(3) / 'a'",
        "config.rec = Path(__file__).parent",
        "config.margin_list = [i for i in range(10 ** 12)]",
        "config.margin_list = [[i for i in range(1000)] for j in range(1000)]",
        "config.margin_list = [len([len([i for i in range(900)]) for j in range(900)]) for k in range(900)]",
        "config.margin_list = [a for a, b in [(1, 2)]]",
        "config.margin_list = [a for a in 'abc']",
        "config.margin_list = [i for i in range(0, 5, 0)]",
        "config.lr = 2 ** 64",
        "config.lr = 1e308 * 10",
        "config.lr = (-1) ** 0.5",
        "config.lr = 'a' * 10 ** 9",
        "config.lr = [0] * 10 ** 9",
        "config.lr = int('9' * 5000)",
        "config.lr = " + "9" * 5000,
        "config.lr = " + "-" * 50_000 + "1",
        "config.lr = " + "(" * 50_000,
        "config.lr = 1" + " + 1" * 50_000,
        "config.lr = " + "[" * 90 + "]" * 90,
        "if " + "not " * 20_000 + "1: config.lr = 1",
        "if open('x'): config.lr = 1",
        "def f(x):\n    return open(x)\nconfig.lr_func = f",
        "config.lr_func = 1",
        "config.decay_epoch = 'ab'",
        "config.lr = 1\0",
        "# " + "a" * 300_000,
    ],
)
def test_what_would_take_time_or_memory_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match=r"ours\.py"):
        load_recipe(write(tmp_path, text))


def test_counts_of_micro_batches_become_counts_of_steps(tmp_path: Path) -> None:
    path = tmp_path / "ours.py"
    path.write_text(HEAD + "config.gradient_acc = 4\nconfig.verbose = 3000\nconfig.frequent = 10\n")
    train = load_recipe(str(path)).train
    assert (train.gradient_accumulation, train.accumulate) == (4, "sum")
    assert (train.verify_every, train.log_every) == (750, 2)
    path.write_text(HEAD + "config.gradient_acc = 1\nconfig.verbose = 3000\n")
    train = load_recipe(str(path)).train
    assert (train.gradient_accumulation, train.accumulate, train.verify_every) == (1, "mean", 3000)
