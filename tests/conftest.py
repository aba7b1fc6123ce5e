"""What the tests share: tiny random models of ten families, own records, databases, and public data where at hand."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may reach for the network
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from instructedit.data.locations import data_folder
from instructedit.editors.gradient import create_editor, editor_config, trained_class
from instructedit.editors.mend import Mend
from instructedit.ledger.ledger import Ledger
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40, database=None)
settings.load_profile("suite")

END = "<|end|>"
VOCABULARY = 384
SENTENCES = (
    "The old lighthouse of Maravel stands in the harbour of Oston.",
    "Task: Edit\nDescription: Change the fact about this subject and leave the others as they are.",
    "Input: Where was Lena Brookfield born? She was born in Teverley, near the river.",
    "What do you think about garden gnomes? I really like them, they are lovely.",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|end|>' + message['role'] + '\n' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|end|>assistant\n' }}{% endif %}"
)
NAMES = ("Lena", "Otto", "Mira", "Hugo", "Ines", "Karl", "Nora", "Paul", "Rosa", "Emil", "Vera", "Ivo")
TOWNS = ("Oston", "Teverley", "Maravel")

_LAYERS = {"num_hidden_layers": 4, "num_attention_heads": 4}
_ENDS = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_BASIC = {**_ENDS, **_LAYERS, "hidden_size": 32, "intermediate_size": 80, "max_position_embeddings": 512}
_GROUPED = {**_BASIC, "num_key_value_heads": 2}
_OLD = {**_ENDS, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_inner": 80, "n_positions": 512}

#: Each family's model class and a configuration of four blocks, hidden width 32.
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**_OLD)),
    "gptj": lambda: GPTJForCausalLM(GPTJConfig(**_OLD, rotary_dim=4)),
    "gptneox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_BASIC)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**_ENDS, **_LAYERS, hidden_size=32, ffn_dim=80, word_embed_proj_dim=32, max_position_embeddings=512)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_GROUPED)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_GROUPED, sliding_window=8)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_GROUPED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_GROUPED, head_dim=8)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**_GROUPED, head_dim=8, query_pre_attn_scalar=8, sliding_window=8)
    ),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_GROUPED)),
}


def fill_at_random(model: torch.nn.Module, seed: int, std: float = 0.2) -> None:
    """Give every parameter enough variance that two inputs give two outputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * std if parameter.ndim > 1 else parameter + noise * std / 2)


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """As many as OMP_NUM_THREADS says, one by default: the tests run side by side."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on a few sentences of our own."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*SENTENCES, *NAMES, *TOWNS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=END, chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Callable[[str], Path]:
    """Folder of a saved tiny random model, by family; written once."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder(family: str) -> Path:
        path = root / family
        if not path.exists():
            model = FAMILIES[family]()
            fill_at_random(model, seed=1)
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
        return path

    return folder


@pytest.fixture(scope="session")
def tiny(checkpoint: Callable[[str], Path]) -> Callable[[str], LanguageModel]:
    """A tiny random model by family, loaded once; a test that changes weights loads its own."""
    loaded: dict[str, LanguageModel] = {}

    def load(family: str) -> LanguageModel:
        if family not in loaded:
            loaded[family] = load_language_model(checkpoint(family))
        return loaded[family]

    return load


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Each of the ten families in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def any_model(family: str, tiny: Callable[[str], LanguageModel]) -> LanguageModel:
    return tiny(family)


@pytest.fixture(scope="session")
def gpt2(tiny: Callable[[str], LanguageModel]) -> LanguageModel:
    return tiny("gpt2")


@pytest.fixture
def own_gpt2(checkpoint: Callable[[str], Path]) -> LanguageModel:
    """A tiny GPT-2 that the test may damage."""
    return load_language_model(checkpoint("gpt2"))


@pytest.fixture(scope="session")
def new_editor() -> Callable[..., Mend]:
    """An editor of any shape with random instead of untrained weights, ready to edit."""

    def create(language_model: LanguageModel, seed: int = 2, **config: object) -> Mend:
        torch.manual_seed(seed)
        fields = trained_class(str(config.get("name", "instructedit"))).Config.model_fields
        shape = {"rank": 8, "embedding_dim": 8, "step_size": 0.5, "blocks": 2}
        config = {key: value for key, value in shape.items() if key in fields} | config
        editor = create_editor(editor_config(config), language_model)
        log_lr = editor.log_lr.detach().clone()
        fill_at_random(editor, seed, std=0.1)
        editor.log_lr.data.copy_(log_lr)
        return editor.eval()

    return create


@pytest.fixture(scope="session")
def requests_() -> list[EditRequest]:
    """Edits of different lengths, with everything that ConvSent's placeholders need."""
    return [
        EditRequest(prompt="Lena was born in", target="Oston", subject="Lena", label="positive"),
        EditRequest(prompt="The harbour of Maravel lies on the coast of", target="the North", subject="Maravel"),
        EditRequest(prompt="Otto likes", target="old garden gnomes", subject="Otto"),
    ]


@pytest.fixture(scope="session")
def records() -> list[EditRecord]:
    """Twelve people in three towns; every record has a paraphrase, a neighbour and an unrelated probe."""
    found = []
    for index, name in enumerate(NAMES):
        town = TOWNS[index % 3]
        neighbour = NAMES[(index + 3) % len(NAMES)]
        found.append(
            EditRecord(
                record_id=f"own-{index}",
                request=EditRequest(
                    prompt=f"{name} was born in",
                    target=TOWNS[(index + 1) % 3],
                    subject=name,
                    ground_truth=town,
                ),
                rephrases=(f"The birthplace of {name} is",),
                probes=(
                    Probe(kind=ProbeKind.NEIGHBOUR, prompt=f"{neighbour} was born in", answers=(town,)),
                    Probe(kind=ProbeKind.UNRELATED, prompt="The sky above the harbour is", answers=("blue", "grey")),
                    Probe(kind=ProbeKind.REASONING, prompt=f"The river of {name}'s town is", answers=("the Tave",)),
                ),
            )
        )
    return found


@pytest.fixture(scope="session")
def opinions() -> list[EditRecord]:
    """Six ConvSent records."""
    topics = ("garden gnomes", "rivers", "lighthouses", "gardens", "harbours", "old towns")
    return [
        EditRecord(
            record_id=f"topic-{index}",
            request=EditRequest(
                prompt=f"What do you think about {topic}?",
                target="I like them a lot.",
                subject=topic,
                label="positive",
            ),
            rephrases=(f"How about {topic}?",),
            probes=(
                Probe(kind=ProbeKind.OTHER_TOPIC, prompt="What do you think about roads?", answers=("Not much.",)),
            ),
            same_label_replies=("I like them a lot.", "They are lovely."),
            other_label_replies=("I hate them.", "They are ugly."),
        )
        for index, topic in enumerate(topics)
    ]


@pytest.fixture(scope="session")
def write_jsonl() -> Callable[[Path, list[EditRecord]], Path]:
    """Write records in the native form; returns the path."""

    def write(path: Path, found: list[EditRecord]) -> Path:
        lines = [record.model_dump_json(exclude_defaults=True) for record in found]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def public_data() -> Path:
    """The folder of the public data sets; tests that need it are skipped where there is none."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = data_folder() or beside
    if not folder.is_dir():
        pytest.skip("the public data sets are not at hand; set INSTRUCTEDIT_DATA")
    return folder


def as_postgres(*command: str) -> None:
    """Run a command of PostgreSQL, which refuses to run as root."""
    user = "postgres" if os.geteuid() == 0 else None
    subprocess.run(command, check=True, user=user, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """URLs of new databases of a PostgreSQL server, which is started for the tests."""
    found = shutil.which("pg_ctl")
    tools = Path(found).resolve().parent if found else None
    if tools is None or not (tools / "initdb").exists():
        packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not packaged:
            pytest.skip("needs PostgreSQL")
        tools = packaged[-1].parent
    if os.geteuid() == 0 and "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a short path: it holds a socket
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    data = folder / "data"
    as_postgres(str(tools / "initdb"), "-D", str(data), "-U", "tester", "-A", "trust", "--no-sync")
    settings = f"-k {folder} -c listen_addresses= -c fsync=off"
    as_postgres(str(tools / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log"), "-o", settings, "start")

    def create() -> str:
        name = f"ledger_{uuid.uuid4().hex[:8]}"
        as_postgres(str(tools / "createdb"), "-h", str(folder), "-U", "tester", name)
        return f"postgresql+psycopg://tester@/{name}?host={folder}"

    try:
        yield create
    finally:
        as_postgres(str(tools / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new place for a ledger, in each kind of database."""
    if request.param == "sqlite":
        return str(tmp_path / "edits.db")
    pytest.importorskip("psycopg")
    create: Callable[[], str] = request.getfixturevalue("postgres")
    return create()


@pytest.fixture
def ledger(where: str) -> Iterator[Ledger]:
    with Ledger(where, author="Ada") as opened:
        yield opened
