from distbelief.ports import Verdict


def test_a_push_is_used_if_it_moves_the_parameters_now_or_with_its_round() -> None:
    assert {verdict for verdict in Verdict if verdict.used} == {Verdict.APPLIED, Verdict.HELD}
