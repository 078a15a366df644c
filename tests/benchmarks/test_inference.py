from benchmarks.inference import agreement, monais, ours, table


def test_both_sides_do_the_same_job():
    shape = (90, 40, 44)
    (_, mine), (_, theirs) = ours(3, shape, 0.0, False), monais(3, shape, 0.0)
    assert agreement(mine, theirs) > 0.999
    assert len(set(mine["labels"])) == 3


def test_air_is_skipped():
    _, result = ours(2, (70, 160, 64), 0.6, True)
    assert 0 < result["windows"] < result["of"]


def test_the_table_has_a_line_for_each_run():
    run = {"seconds": 2.0, "peak_gb": 0.5, "windows": 3, "of": 9}
    text = table({"ours": run, "agreement": 0.5, "note": "a note"})
    assert text.splitlines()[2:] == ["| ours | 2 | 0.50 GB | 3 of 9 |", "", "a note; 50.00% of labels agree"]
