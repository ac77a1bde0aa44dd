"""Pure functions of one lane: an agent at the start, and an iteration: a batch of experience, and what is learnt of it.

Environments, agents and updates are all in one compiled program; the engine vmaps it over lanes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.control.environments import Move, Physics
from experiments.control.methods import method_of
from experiments.control.ppo import (
    Experience,
    Moments,
    deviation,
    gae,
    log_policy,
    normalised,
    of_action,
    start_moments,
    update_moments,
)
from experiments.control.setup import Bench
from experiments.kit.methods import Group
from lopjax.model import Variables
from lopjax.training import Drawn, Logs, Setting, TrainState, init_state, intervene, start_intervention, train_step


class Keys(NamedTuple):
    """What a seed decides; every method has the same.

    Attributes:
        init: random key of the networks; that of task k is drawn by `fold_in(init, k)`.
        own: random key of the method's own draws.
        tasks: random key of the physics of the tasks and of their initial states.
    """

    init: jax.Array
    own: jax.Array
    tasks: jax.Array


class Play(NamedTuple):
    """Environments in the middle of their episodes; a leading axis of environments.

    Attributes:
        state: state of each.
        observation: observation of each.
        total: reward of the episode so far.
        discounted: the sum of rewards so far, discounted by their age.
    """

    state: Any
    observation: jax.Array
    total: jax.Array
    discounted: jax.Array


class Agent(NamedTuple):
    """An agent in training.

    Attributes:
        net: policy and value, their optimizer, and the state of an intervention.
        moments: moments of the observations, by which they are normalised.
        rewards: moments of the discounted sums of rewards, by which rewards are scaled.
        play: the environments.
        touched: by unit space, which units were reset since the last record.
        keys: keys of its seed.
        numbers: those of the method that differ between the lanes of its program.
    """

    net: TrainState
    moments: Moments
    rewards: Moments
    play: Play
    touched: dict[str, jax.Array]
    keys: Keys
    numbers: Mapping[str, Any]


class Rollout(NamedTuple):
    """A batch of experience, `(steps, environments)`.

    Attributes:
        observation: that the action was chosen by.
        action: chosen.
        move: what it led to.
        total: reward of the episode up to and with this step.
        discounted: likewise, discounted by age.
    """

    observation: jax.Array
    action: jax.Array
    move: Move
    total: jax.Array
    discounted: jax.Array


class Newborn(NamedTuple):
    """What every task can begin with, whatever the method.

    Attributes:
        variables: variables of a network drawn for this task.
        play: episodes at their starts.
        keys: keys of the seed.
    """

    variables: Variables
    play: Play
    keys: Keys


class Program(NamedTuple):
    """The pure functions of one group of lanes.

    Attributes:
        start: `(newborn, numbers) -> Agent`.
        begin: `(Agent, new Agent) -> Agent`: what happens before the first iteration of a task.
        step: `(Agent, drawn, key, index) -> (Agent, logs)`, one iteration.
    """

    start: Callable[[Newborn, Mapping[str, Any]], Agent]
    begin: Callable[[Agent, Agent], Agent]
    step: Callable[[Agent, Drawn, jax.Array, jax.Array], tuple[Agent, Logs]]


def keys_of(seed: jax.Array) -> tuple[Keys, jax.Array]:
    """Those of an agent, and that of its iterations."""
    *own, lane = jax.random.split(jax.random.key(seed, impl="philox4x32"), 4)
    return Keys(*own), lane


def make_newborn(bench: Bench) -> Callable[[jax.Array, jax.Array], Newborn]:
    """`(seed, task) -> Newborn`. All groups share it: what draws numbers takes long to compile."""
    world = bench.world

    def newborn(seed: jax.Array, task: jax.Array) -> Newborn:
        keys, _ = keys_of(seed)
        start_key = jax.random.fold_in(jax.random.fold_in(keys.tasks, task), 1)
        starts = jax.random.split(start_key, bench.problem.num_envs)
        observation, state = jax.vmap(world.reset, in_axes=(0, None))(starts, world.physics(keys.tasks, task))
        zeros = jnp.zeros(bench.problem.num_envs)
        variables = bench.model.init(jax.random.fold_in(keys.init, task))
        return Newborn(variables, Play(state, observation, zeros, zeros), keys)

    return newborn


def make_program(bench: Bench, group: Group) -> Program:
    """The functions of a group; numbers that all its lanes have in common are constants of the program."""
    problem, world, model = bench.problem, bench.world, bench.model
    method = method_of(group.methods[0])  # of a group all have the same optimizer

    def known(keys: Keys, numbers: Mapping[str, Any], share: Any) -> tuple[Setting, Any]:
        settings = {**group.constants, **numbers}
        settings["learning_rate"] = settings["learning_rate"] * share
        made = None if method.intervention is None else method.intervention(settings, bench.probe)
        return Setting(model, method.optimizer(settings, keys.own), bench.loss), made

    def start(newborn: Newborn, numbers: Mapping[str, Any]) -> Agent:
        setting, intervention = known(newborn.keys, numbers, 1.0)
        net = init_state(newborn.variables, setting.optimizer)
        if intervention is not None:
            net = start_intervention(intervention, setting, net)
        moments = start_moments((world.observations,)), start_moments()
        touched = {space: jnp.zeros(model.wiring.size(space), bool) for space in model.wiring.cloneable}
        return Agent(net, *moments, newborn.play, touched, newborn.keys, dict(numbers))

    def begin(agent: Agent, new: Agent) -> Agent:
        """The episodes of the task begin; a fresh agent forgets all that it knew, the others at most their moments."""
        is_fresh = {**group.constants, **agent.numbers}["is_fresh"]
        chosen = jax.tree.map(lambda a, b: jnp.where(is_fresh, a, b), new, agent._replace(keys=new.keys))
        moments = new.moments if problem.restart_normaliser else chosen.moments
        return chosen._replace(play=new.play, moments=moments)

    def step(agent: Agent, drawn: Drawn, key: jax.Array, index: jax.Array) -> tuple[Agent, Logs]:
        share = 1 - index % problem.iterations / problem.iterations if problem.anneal else 1.0
        setting, intervention = known(agent.keys, agent.numbers, share)
        play_key, learn_key = jax.random.split(key)
        physics = world.physics(agent.keys.tasks, index // problem.iterations)
        play, rollout = collect(bench, agent, physics, play_key)
        agent, batch = learnt_from(bench, agent, rollout)
        # The index is the same for all lanes, so that under vmap what is done at some updates stays a branch.
        net, touched, loss = improve(bench, setting, intervention, agent, batch, learn_key, index)
        ended = rollout.move.terminated | rollout.move.truncated
        logs = {
            "loss": loss,
            "episodes": jnp.sum(ended, dtype=float),
            "returns": jnp.sum(jnp.where(ended, rollout.total, 0)),
            "terminations": jnp.sum(rollout.move.terminated, dtype=float),
        }
        return agent._replace(net=net, play=play, touched=touched), logs

    return Program(start, begin, step)


def collect(bench: Bench, agent: Agent, physics: Physics, key: jax.Array) -> tuple[Play, Rollout]:
    """Play a batch of steps with actions drawn from the policy, which stays as it is meanwhile."""
    problem, world = bench.problem, bench.world
    action_key, step_key = jax.random.split(key)
    shape = problem.num_steps, problem.num_envs
    # Drawn at once: one call for each step would be a large part of a step this small.
    noise = jax.random.gumbel(action_key, (*shape, world.num_actions))
    step_keys = jax.random.split(step_key, shape)
    variables = agent.net.variables

    def act(play: Play, drawn: tuple[jax.Array, jax.Array]) -> tuple[Play, Rollout]:
        outputs = bench.model.apply(variables, normalised(agent.moments, play.observation)).logits
        action = jnp.argmax(outputs[:, :-1] + drawn[0], axis=-1)
        move = jax.vmap(world.step, in_axes=(0, 0, 0, None))(drawn[1], play.state, action, physics)
        total, discounted = play.total + move.reward, problem.discount * play.discounted + move.reward
        rollout = Rollout(play.observation, action, move._replace(state=(), observation=()), total, discounted)
        ended = move.terminated | move.truncated
        left = [jnp.where(ended, 0, one).astype(play.total.dtype) for one in (total, discounted)]
        return Play(move.state, move.observation, *left), rollout

    return jax.lax.scan(act, agent.play, (noise, step_keys))


def learnt_from(bench: Bench, agent: Agent, rollout: Rollout) -> tuple[Agent, tuple[jax.Array, Experience]]:
    """Inputs and labels of the updates; and the agent, whose normaliser knows the batch from the next one on.

    That the batch is normalised as it was when its actions were chosen makes the first ratio of probabilities one.
    """
    problem, move = bench.problem, rollout.move
    inputs, finals = (normalised(agent.moments, each) for each in (rollout.observation, move.final))
    size = problem.num_steps * problem.num_envs
    both = jnp.concatenate([inputs.reshape(size, -1), finals.reshape(size, -1)])
    outputs = bench.model.apply(agent.net.variables, both).logits
    values, next_values = outputs[:, -1].reshape(2, problem.num_steps, problem.num_envs)
    moments = update_moments(agent.moments, rollout.observation.reshape(size, -1))
    rewards, scale = agent.rewards, 1.0
    if problem.scale_rewards:
        rewards = update_moments(rewards, rollout.discounted.reshape(size))
        scale = deviation(rewards)
    advantages = gae(
        *(move.reward / scale, values, next_values, move.terminated, move.truncated),
        *(problem.discount, problem.gae_decay),
    )
    flat, action = advantages.reshape(size), rollout.action.reshape(size)
    log_prob = of_action(log_policy(outputs[:size]), action)
    advantage = normalised(update_moments(start_moments(), flat), flat, jnp.inf)
    labels = Experience(action, log_prob, advantage, (advantages + values).reshape(size))
    return agent._replace(moments=moments, rewards=rewards), (both[:size], labels)


def improve(
    bench: Bench,
    setting: Setting,
    intervention: Any,
    agent: Agent,
    batch: tuple[jax.Array, Experience],
    key: jax.Array,
    index: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array], jax.Array]:
    """All updates of one batch, each on a minibatch; after each the intervention acts.

    Returns:
        The network, which units were touched since the last record, the mean loss.
    """
    problem = bench.problem
    size, updates = problem.num_steps * problem.num_envs, problem.epochs * problem.minibatches
    order_key, own_key = jax.random.split(key)
    orders = jax.vmap(lambda one: jax.random.permutation(one, size))(jax.random.split(order_key, problem.epochs))
    orders = orders.reshape(updates, -1)

    def update(carry: Any, drawn: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        (net, touched), (number, order) = carry, drawn
        minibatch = jax.tree.map(lambda leaf: leaf[order], batch)
        net, seen = train_step(bench.model, setting.optimizer, net, minibatch, loss=setting.loss)
        if intervention is not None:
            net, report = intervene(
                intervention, setting, net, seen, jax.random.fold_in(own_key, number), index * updates + number
            )
            touched = {space: units | report.touched.get(space, False) for space, units in touched.items()}
        return (net, touched), seen.loss

    numbers = jnp.arange(updates, dtype=jnp.int32)
    (net, touched), losses = jax.lax.scan(update, (agent.net, agent.touched), (numbers, orders))
    return net, touched, jnp.mean(losses)
