"""The choice of an estimator and the sentences on it, from trees whose answers were planted."""

import math

import numpy as np
import pytest
import xarray as xr
from gradient_trees import COUNTS, TIGHT, gradient_tree, gradients, without

from pyrovae.results import Evidence, build_tree, group
from pyrovae.results.gradient_choice import candidates, choose, objective_of
from pyrovae.results.gradient_sentences import gradient_sentences, has_verdict, told_of
from pyrovae.results.gradients import gradient_records
from pyrovae.results.training_path import path_group, path_sentences, stack_epochs
from pyrovae.results.verdicts import verdict_sentences


def at(tree: xr.DataTree, part: str) -> tuple[str, int]:
    choice = choose(candidates(gradient_records(tree), part))
    assert choice is not None
    return choice.best[:2]


def said(tree: xr.DataTree, start: str) -> str:
    (sentence,) = [s for s in gradient_sentences(tree) if s.startswith(start)]
    return sentence


def test_what_estimators_estimate() -> None:
    assert objective_of("stl", "encoder", 64) == objective_of("iwae", "encoder", 1) == "the ELBO"
    assert objective_of("piwae", "decoder", 8) == objective_of("vimco", "encoder", 8) == "IWAE"
    assert objective_of("piwae", "encoder", 8) == objective_of("miwae", "decoder", 8)
    assert objective_of("rws", "encoder", 1) != objective_of("rws", "decoder", 1)
    assert objective_of("ciwae", "encoder", 8) == "ciwae"


GOOD = {"elbo": ((0.2, 0.5), (1.0, 0.5)), "dreg": ((0.9, 0.5), (1.5, 0.5)), "iwae": ((0.3, -0.5), (1.0, 0.5))}


def test_a_clear_winner_is_named_with_its_numbers_and_the_next() -> None:
    tree = gradient_tree(gradients(GOOD, counts=(1, 8, 64)))
    assert at(tree, "encoder") == ("dreg", 64)
    sentence = said(tree, "Encoder: ")
    gain = 0.81 * 64 / 7.4e-3
    error = math.hypot(0.02 * gain, 0.1 * gain)
    assert sentence.startswith(
        f"Encoder: use DReG with 64 particles, an SNR^2 of {round(gain, -1):.0f} ± {round(error, -1):.0f} per second, "
        "20 times that of ELBO with 64 particles, the next. Its SNR over 64 data is 7.2."
    )
    assert gradient_sentences(tree)[-1].startswith("Decoder: ")
    assert has_verdict(tree)


def test_the_decoder_hears_what_it_pays_against_log_p() -> None:
    cheap = {("dreg", 1, "decoder"): 1000.0}
    made = gradients(GOOD, counts=(1, 8, 64), snr_squared=cheap)
    made["variance"].values[1, 0, 1] = 1e-9
    assert said(gradient_tree(made), "Decoder: ").endswith(
        "Its mean is off from the gradient of log p(x) by 30.00 ± 0.30 % of the latter's length; nearest is ELBO with "
        "64 particles, by 3.750 ± 0.037 %."
    )


def test_no_clear_winner_where_intervals_overlap() -> None:
    even = {
        "stl": ((0.9, 0.5), (1.0, 0.5)),
        "dreg": ((0.91, 0.5), (1.0, 0.5)),
        "elbo": ((0.1, 0.5), (0.1, 0.5)),
    }
    tree = gradient_tree(gradients(even, counts=(1, 64)))
    sentence = said(tree, "Encoder: ")
    assert sentence.startswith(
        "Encoder: no clear winner in SNR^2 per second between DReG with 64 particles (7160 ±"
    )
    assert "STL with 64 particles (7010 ±" in sentence
    assert "ELBO" not in sentence
    assert "Of these, nearest to the gradient of log p(x) is STL with 64 particles" in said(tree, "Decoder: ")
    assert "DReG and STL cannot be told apart with 1 particle" in " ".join(gradient_sentences(tree))


def test_a_clock_that_wavers_makes_no_winner() -> None:
    steady, shaky = (
        choose(
            candidates(gradient_records(gradient_tree(gradients(GOOD, seconds_std_error=changes))), "encoder")
        )
        for changes in ({}, {("dreg", k, "encoder"): 1.0 for k in COUNTS})
    )
    assert steady is not None
    assert shaky is not None
    assert steady.is_clear
    assert not shaky.is_clear


def test_one_estimator_with_any_number_of_particles_is_still_a_winner() -> None:
    tree = gradient_tree(gradients(GOOD, counts=(32, 64), relative_error=0.3))
    start = "Encoder: use DReG; 32 and 64 particles cannot be told apart, an SNR^2 of"
    assert said(tree, "Encoder: ").startswith(start)


def test_within_an_objective_the_variance_decides_though_the_snr_is_noise() -> None:
    """SNR^2 says nothing here, or the contrary; the means are the same, so the variances do."""
    made = gradients({"elbo": ((0.1, 0.5), (1, 0.5)), "stl": ((0.3, 0.5), (1, 0.5))}, counts=(1,))
    made["snr_squared"].values[:, 0, 0] = 0.03, 0.02
    made["snr_squared_std_error"].values[:, 0, 0] = 0.009
    tree = gradient_tree(made)
    assert at(tree, "encoder") == ("stl", 1)
    assert said(tree, "Variance x seconds for the encoder, the ELBO").endswith(
        ": STL has 0.11 of ELBO's, the next, with 1 particle."
    )
    other = made.assign_coords(
        method=["elbo", "rws"]
    )  # planted: another objective, where variances say nothing
    assert at(gradient_tree(other), "encoder") == ("elbo", 1)


def test_a_biased_estimator_is_named_and_left_out() -> None:
    bias = {("dreg", k, "encoder"): 0.25 for k in (8, 64)}
    tree = gradient_tree(gradients(GOOD, counts=(1, 8, 64), own_bias_squared=bias))
    assert at(tree, "encoder")[0] != "dreg" or at(tree, "encoder")[1] == 1
    assert said(tree, "DReG with 8 and 64 particles is biased") == (
        "DReG with 8 and 64 particles is biased for the encoder, and left out: its mean is off by 50.000 ± 0.010 % and "
        "50.000 ± 0.010 % of the length of its own objective's gradient."
    )
    all_biased = {(m, k, "encoder"): 0.25 for m in GOOD for k in (1, 8, 64)}
    tree = gradient_tree(gradients(GOOD, counts=(1, 8, 64), own_bias_squared=all_biased))
    assert said(tree, "Encoder: ") == "Encoder: no verdict; every estimator is biased."
    assert has_verdict(tree)  # on the decoder


def test_rows_without_numbers_are_told_and_do_not_win() -> None:
    made = gradients(GOOD, counts=(1, 8, 64))
    for count in (8, 64):
        made = without(made, "dreg", count, "the gradient is not finite")
    tree = gradient_tree(made)
    assert (
        said(tree, "No numbers") == "No numbers on DReG with 8 and 64 particles: the gradient is not finite."
    )
    assert at(tree, "encoder") != ("dreg", 64)
    nothing = gradients({"elbo": GOOD["elbo"]}, counts=(1,))
    tree = gradient_tree(without(nothing, "elbo", 1, "why"))
    assert not has_verdict(tree)
    assert verdict_sentences(tree)[-1] == "Decoder: no verdict; no estimator has numbers."


def test_noise_alone_gives_no_verdict() -> None:
    made = gradients({"elbo": GOOD["elbo"]}, counts=(1,))
    made["snr_squared_std_error"].values[:] = made["snr_squared"].values
    assert said(gradient_tree(made), "Encoder: ") == (
        "Encoder: no verdict; the SNR of no unbiased estimator can be told from 0, more replicates are needed."
    )


def test_an_estimator_without_variance_wins() -> None:
    perfect = {("elbo", 1, "encoder"): math.inf}
    made = gradients(GOOD, counts=(1, 8), snr_squared=perfect)
    for name in ("variance", "variance_std_error"):
        made[name].values[0, 0, 0] = 0.0
    sentence = said(gradient_tree(made), "Encoder: ")
    assert (
        sentence
        == "Encoder: use ELBO with 1 particle, whose gradient has no variance. Its SNR over 64 data is inf."
    )


def test_a_low_snr_says_how_many_particles_make_it_one() -> None:
    tree = gradient_tree(gradients({"iwae": ((0.5, -0.5), (1, 0.5))}, counts=(1, 4)))
    assert at(tree, "encoder") == ("iwae", 1)
    assert said(tree, "Encoder: ").endswith("is 0.5; 4 particles, in independent estimates, would make it 1.")


def test_where_the_encoder_gets_worse_with_particles_a_sentence_warns() -> None:
    assert said(gradient_tree(gradients(seed=0)), "The encoder's SNR falls").startswith(
        "The encoder's SNR falls with the number of particles for IWAE, like K^-0."
    )
    two = gradient_tree(gradients({"iwae": TIGHT["iwae"]}, counts=(1, 64)))
    assert said(two, "The encoder's SNR falls").endswith(
        "for IWAE, from 0.5 with 1 to 0.062 with 64: more make it worse."
    )
    rising = {"iwae": ((0.5, 0.5), (1, -0.5))}
    assert not [s for s in gradient_sentences(gradient_tree(gradients(rising))) if "falls" in s]


def test_both_parts_get_one_estimator_if_there_is_one() -> None:
    apart = {"stl": ((0.9, 0.5), (0.1, 0.5)), "iwae": ((0.1, 0.5), (0.9, 0.5))}
    assert said(gradient_tree(gradients(apart, counts=(4,))), "No estimator is among")
    near = {"stl": ((0.9, 0.5), (0.9, 0.5)), "iwae": ((0.85, 0.5), (0.95, 0.5))}
    sentence = said(gradient_tree(gradients(near, counts=(4,))), "Among the best for both")
    assert sentence.endswith("IWAE with 4 particles and STL with 4 particles.")


# along training


def test_a_change_of_ranking_is_told() -> None:
    late = {"elbo": GOOD["dreg"], "dreg": GOOD["elbo"], "iwae": GOOD["iwae"]}
    early, late_made = (gradients(table, counts=(1, 8)) for table in (GOOD, late))
    tree = gradient_tree(early, late_made, epoch=[0, 20])
    assert said(tree, "The best estimator for the encoder") == (
        "The best estimator for the encoder changes along training: DReG with 8 particles at epoch 0 and ELBO with 8 "
        "particles at epoch 20."
    )
    assert said(tree, "Encoder: ").startswith("Encoder: use ELBO with 8 particles")  # the last epoch
    tree = gradient_tree(early, early, epoch=[0, 20])
    assert said(tree, "The best estimator for the encoder").endswith(
        "at all 2 checkpoints: DReG with 8 particles."
    )
    close = {"elbo": ((0.9, 0.5), (1, 0.5)), "stl": ((0.91, 0.5), (1, 0.5))}
    swapped = {"elbo": close["stl"], "stl": close["elbo"]}
    tree = gradient_tree(*(gradients(table, counts=(4,)) for table in (close, swapped)), epoch=[1, 2])
    assert "cannot be shown to change" in said(tree, "The best estimator for the encoder")


def estimates(*value: list[float], direction: str = "lower") -> list[Evidence]:
    yes = np.ones(len(value[0]), bool)
    return [
        Evidence(
            method="ais",
            value=np.array(v),
            std_error=np.full(len(v), 0.01),
            direction=direction,
            is_unbiased_density=True,
            is_reliable=yes,
            is_approximate=~yes,
        )
        for v in value
    ]


def test_the_path_pairs_data_and_says_where_the_guide_falls_behind() -> None:
    """The data differ by 100 nats; their changes by 0.1: only the differences datum by datum show them."""
    spread = np.array([0.0, 100.0, 200.0])
    log_p = [list(spread + v) for v in (-9.0, -5.0, -4.0)]
    elbo = [list(spread + v) for v in (-10.0, -5.5, -5.5)]
    path = path_group([0, 1, 5], estimates(*elbo), estimates(*log_p))
    assert path["kl_posterior"].values == pytest.approx([1.0, 0.5, 1.5])
    assert path["log_evidence_std_error"].values[0] > 50
    assert path["log_evidence_change_std_error"].values[1:] == pytest.approx(
        math.sqrt(2 / 3) * 0.01, abs=1e-9
    )
    sentences = list(path_sentences(build_tree({"history": path})))
    assert sentences == [
        "From epoch 1 to epoch 5 log p(x) rises by 1.0000 ± 0.0082 nats per datum while KL(guide || posterior) rises "
        "by 1.000 ± 0.012: the model gets better and the guide worse (log p(x) by AIS, at least)."
    ]
    good = path_group([0, 1], estimates(*elbo[:2]), estimates(*log_p[:2]))
    assert next(path_sentences(build_tree({"history": good}))).startswith("Between no two checkpoints")
    with pytest.raises(ValueError, match="of the same data for each of the epochs"):
        path_group([0, 1], estimates(*elbo), estimates(*log_p))


def test_an_ordinary_history_says_nothing() -> None:
    history = group("history", {"elbo": np.array([-9.0, -8.0])})
    assert not list(path_sentences(build_tree({"history": history})))


def test_epochs_are_stacked_first() -> None:
    stacked = stack_epochs([gradients(seed=0), gradients(seed=1)], [0, 7])
    assert stacked["snr_squared"].dims == ("epoch", "method", "count", "part")
    assert stacked["epoch"].values.tolist() == [0, 7]
    assert np.array_equal(stacked["snr_squared"][1].values, gradients(seed=1)["snr_squared"].values)
    with pytest.raises(ValueError, match="every epoch needs the same"):
        stack_epochs([gradients(), gradients(counts=(1, 2))], [0, 7])


def test_names_as_people_write_them() -> None:
    assert told_of("rws_dreg", [2]) == "RWS DReG with 2 particles"
    assert told_of("score_function_loo", [64, 8]) == "score function LOO with 8 and 64 particles"
