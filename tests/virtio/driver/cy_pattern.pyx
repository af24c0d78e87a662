"""vhostrt.virtio.driver.pattern: what is written and what is found wrong, sector by sector."""
import pytest
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from vhostrt.virtio.driver.pattern cimport (PATTERN_DAMAGED, PATTERN_ELSEWHERE, PATTERN_GENERATION,
                                            PATTERN_OK, PATTERN_RUN, PATTERN_ZERO, pattern_check,
                                            pattern_fault_t, pattern_fill, pattern_t)

HERE, GENERATION, SEED = 0x123456 * 512, 7, 99


cdef class Sector:
    """One sector as it was written, and a look at it."""
    cdef uint64_t words[64]

    def __cinit__(self, offset=HERE, generation=GENERATION, seed=SEED):
        cdef pattern_t p = pattern_t(offset, generation, seed, False)
        pattern_fill(self.words, &p)

    def bytes(self):
        return (<char *>self.words)[:512]

    def flip(self, bit):
        self.words[bit // 64] ^= <uint64_t>1 << (bit % 64)

    def zero(self):
        memset(self.words, 0, 512)

    def look(self, offset=HERE, generation=GENERATION, seed=SEED, any_run=False):
        """Return (kind, offset, wanted, found, belongs); (0,) when nothing is wrong."""
        cdef pattern_t p = pattern_t(offset, generation, seed, any_run)
        cdef pattern_fault_t fault
        cdef uint32_t kind = pattern_check(self.words, &p, &fault)
        if kind == PATTERN_OK:
            return (0,)
        assert fault.kind == kind
        return kind, fault.offset, fault.wanted, fault.found, fault.belongs


def test_what_was_written_is_found_right():
    assert Sector().look() == (0,)
    assert Sector().look(generation=0, seed=0, any_run=True) == (0,)


def test_sectors_differ_all_over():
    a, b = Sector().bytes(), Sector(generation=GENERATION + 1).bytes()
    assert sum(x == y for x, y in zip(a, b)) < 30


@pytest.mark.parametrize("any_run", [False, True])
def test_every_flipped_bit_is_found(any_run):
    for bit in range(512 * 8):
        sector = Sector()
        sector.flip(bit)
        assert sector.look(any_run=any_run)[:2] == (PATTERN_DAMAGED, HERE), f"bit {bit}"


@pytest.mark.parametrize(("written", "kind"), [
    ({"offset": HERE + 512}, PATTERN_ELSEWHERE), ({"generation": GENERATION - 1},
                                                  PATTERN_GENERATION),
    ({"seed": SEED + 1}, PATTERN_RUN)], ids=["elsewhere", "generation", "run"])
def test_a_whole_sector_that_is_another(written, kind):
    there = {"offset": HERE, "generation": GENERATION} | written
    assert Sector(**written).look() == (kind, HERE, GENERATION, there["generation"],
                                        there["offset"])
    if kind != PATTERN_ELSEWHERE:
        assert Sector(**written).look(any_run=True) == (0,)


@pytest.mark.parametrize("any_run", [False, True])
def test_zeros(any_run):
    sector = Sector()
    sector.zero()
    assert sector.look(any_run=any_run)[:2] == (PATTERN_ZERO, HERE)
