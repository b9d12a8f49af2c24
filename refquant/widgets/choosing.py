"""Notebook 09, choosing: the planner, the chooser, stacking, batching and speculation."""

from refquant.bandwidth import choose, devices, shapes, stack
from refquant.bandwidth.units import GIB
from refquant.figures import choosing
from refquant.widgets.explorer import Explorer, check, choice_slider, explore, menu, real_slider, slider

MIXES = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")
MODELS = ("llama-3.2-1b", "llama-3.1-8b", "qwen2.5-32b", "llama-3.1-70b", "qwen2.5-72b", "llama-3.1-405b")
CARDS = tuple((device.title, name) for name, device in devices.DEVICES.items() if device.kind == "gpu")
MEMORIES = tuple((device.title, name) for name, device in devices.DEVICES.items() if device.kind == "cpu")
CONTEXTS = (512, 2048, 4096, 8192, 32768)


def planner() -> Explorer:
    """A model between a card and main memory."""

    def draw(model, storage, gpu, ram, context, fit, layers):
        card, memory = devices.find_device(gpu), devices.find_device(ram)
        return choosing.plan(model, storage, card, memory, context, None if fit else layers)

    return explore(
        draw,
        model=menu("model", "llama-3.1-70b", MODELS),
        storage=menu("type", "Q4_K_M", MIXES),
        gpu=menu("card", "rtx-4090", CARDS),
        ram=menu("main memory", "ddr5-5600", MEMORIES),
        context=choice_slider("context", 4096, CONTEXTS),
        fit=check("as many layers on the card as fit", True),
        layers=slider("layers on the card", 20, 0, max(shapes.find_shape(name).layers for name in MODELS) + 1),
    )


def chooser() -> Explorer:
    """The three questions: where, how much memory, how much loss."""

    def draw(model, memory, hardware, loss, prefer):
        return choosing.options(
            choose.choose(
                model,
                memory * GIB,
                hardware,
                loss,
                device=devices.find_device("rtx-4090" if hardware != "cpu" else "ddr5-5600"),
                ram=devices.find_device("ddr5-5600"),
                prefer=prefer,
            )
        )

    return explore(
        draw,
        model=menu("model", "llama-3.1-8b", MODELS),
        memory=slider("memory, GiB", 24, 2, 128),
        hardware=menu("where", "gpu", choose.HARDWARE),
        loss=choice_slider("loss accepted", "low", tuple(choose.LOSS)),
        prefer=menu("rank by", "speed", tuple(choose.RANKS)),
    )


def stacker() -> Explorer:
    """All techniques at once, on a card."""

    def draw(gpu, storage):
        card = devices.find_device(gpu)
        return choosing.stacked(stack.gains("llama-3.1-8b", storage, card), f"Llama-3.1-8B on {card.title}")

    cards = [(title, name) for title, name in CARDS if name in ("l4", "rtx-4090", "a100-80gb", "h100-sxm")]
    return explore(
        draw,
        gpu=menu("card", "rtx-4090", cards),
        storage=menu("weights", "int4-g128", ("int4-g128", "fp8-e4m3", "Q4_K_M")),
    )


def batching() -> Explorer:
    """The spread of lengths, the draft's acceptance and cost."""

    def draw(longest, acceptance, cost):
        return choosing.batching([64 * 2**i for i in range(longest + 1)], acceptance, cost)

    spread = [("all 64", 0), ("64 to 128", 1), ("64 to 256", 2), ("64 to 512", 3), ("64 to 1024", 4), ("64 to 2048", 5)]
    return explore(
        draw,
        longest=choice_slider("tokens of a request", 4, spread),
        acceptance=real_slider("acceptance", 0.7, 0.05, 0.95, 0.05),
        cost=real_slider("draft's cost", 0.15, 0.01, 0.5, 0.01),
    )
