"""Do each kind of work of a run once, so that the first of several runs is not slower.

The first use of a kernel, an optimizer or the decoder in a process loads libraries and modules and
allocates memory, which takes about a second.
"""

from __future__ import annotations

from recurra.data.batches import BatchStream
from recurra.data.token_file import load_token_file, load_vocabulary
from recurra.engine.sampling import GenerationConfig
from recurra.engine.select import select_engine
from recurra.inference.evaluate import evaluate
from recurra.inference.generate import generate
from recurra.report.progress import Progress
from recurra.runs.directory import RunDirectory
from recurra.runs.weights import weights_to_bytes
from recurra.runtime.clock import Clock
from recurra.training.batch_schedule import at_stage
from recurra.training.context import open_context
from recurra.training.creation import create_model

NUM_STEPS = 3
"""Number of training steps: the compiled engine records the first ones and replays the others."""
MAX_TOKENS = 64
"""Maximum number of tokens in the evaluation, and of time steps in the training batch."""


def warm_up(directory: RunDirectory) -> None:
    """Train, evaluate and generate with the settings of a run, and discard the result.

    Nothing is written, and the random generators are restored.

    Args:
        directory: the run, which need not have started.
    """
    config, vocabulary = directory.read_config(), load_vocabulary(directory.path)
    tokens = load_token_file(directory.path)
    with open_context(config, Progress(), Clock()) as context:
        model = create_model(config, context.processes.device)
        training = at_stage(config.training, 0)
        engine = select_engine(model, training, context.processes)
        batch = BatchStream(tokens.train, training, context.processes).typical_batch(MAX_TOKENS)
        model.train()
        for _ in range(NUM_STEPS):
            engine.step(batch, 0.0)
            engine.synchronize()
        with engine.averaged_weights():
            if len(tokens.val) > 1:
                evaluate(model, tokens.val[:MAX_TOKENS], num_streams=1)
            generate(model, vocabulary, "", GenerationConfig(max_new_tokens=2))
        weights_to_bytes(model, {})
