"""The text of a training step, for tests that run a whole training in a process of its own."""

STEP = """
preprocess = Preprocess((0.3,), (0.3,), crop_padding=1, flip=True)

def step(state, drawn, key, index):
    state, noise_key = state
    images, labels = drawn.batch
    augment_key, dropout_key = jax.random.split(key)
    inputs = preprocess.inputs(images, augment_key)
    state, seen = train_step(model, optimizer(noise_key), state, (inputs, labels), dropout_key)
    return (state, noise_key), logs_of(seen, "loss", "accuracy")

def lanes_of(keys):
    return start_lanes(over_lanes(lambda key: (init_state(model.init(key), optimizer(key)), key), 1)(keys))
"""
"""With `model` and `optimizer` (a function of a key) given: augmentation, dropout, and an optimizer with noise."""
