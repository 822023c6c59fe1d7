/* The end of one round: who attests what, and which shares are then released, against a server that lies.

The same model as unmasking.py, for spin: three honest clients (n = 4, c = 1), two rosters. A set U3 is a mask of clients,
bit 3 the corrupt one. Corrupt clients attest whatever helps and hold c shares of every secret. */

#ifndef T
#define T 3
#endif
#define C 1
#define H 3
#define SETS 16
#define BIT(k) (1 << (k))
#define HAS(mask, k) ((mask) & BIT(k))
#define ONE(mask, k) (((mask) >> (k)) & 1)
#define SIZE(set) (ONE(set, 0) + ONE(set, 1) + ONE(set, 2) + ONE(set, 3))

byte masked[2];          /* by roster: who masked; the corrupt client is in both */
byte attested[2 * SETS]; /* by roster and U3: who attested it */
byte released[2 * SETS]; /* by roster and U3: who released for it */
byte begun, set, sum_b, sum_s, opened, k; /* scratch, zero between the events, but for begun: somebody attested */

#define AT(r, u3) ((r) * SETS + (u3))
#define COUNT(mask) (ONE(mask, 0) + ONE(mask, 1) + ONE(mask, 2))

#ifdef TWO_ROSTERS
#define MAY_MASK(u, r) (!HAS(masked[r], u))
#else
#define MAY_MASK(u, r) (!HAS(masked[0], u) && !HAS(masked[1], u))
#endif

#ifdef ATTESTS_TWICE
#define FIRST true
#else
#define FIRST (set == 0)
#endif

#ifdef NO_QUORUM
#define QUORUM(r, u3) true
#else
#define QUORUM(r, u3) (COUNT(attested[AT(r, u3)]) + ONE(u3, 3) >= T)
#endif

inline mask(u, r) {
    d_step {
        !begun && MAY_MASK(u, r) ->
        printf("%d masks under roster %d\n", u, r); masked[r] = masked[r] | BIT(u)
    }
}

/* In this roster: how many sets u attested, in `set`. */
inline attested_by(u, r) {
    set = 0; k = 0;
    do :: k < SETS -> if :: HAS(attested[AT(r, k)], u) -> set++ :: else fi; k++ :: else -> break od;
    k = 0
}

inline attest(u, r, u3) {
    d_step {
        attested_by(u, r);
        if
        :: HAS(masked[r], u) && HAS(u3, u) && SIZE(u3) >= T && (u3 & 7 & ~masked[r]) == 0 && !HAS(attested[AT(r, u3)], u) && FIRST ->
            printf("%d attests %d under roster %d\n", u, u3, r);
            attested[AT(r, u3)] = attested[AT(r, u3)] | BIT(u); begun = 1
        :: else
        fi; set = 0
    }
}

inline release(u, r, u3) {
    d_step {
        if
        :: HAS(attested[AT(r, u3)], u) && !HAS(released[AT(r, u3)], u) && QUORUM(r, u3) ->
            printf("%d releases for %d under roster %d\n", u, u3, r);
            released[AT(r, u3)] = released[AT(r, u3)] | BIT(u);
            look()
        :: else
        fi
    }
}

/* Of no honest client both kinds of share, in either roster; and one sum. */
inline look() {
    opened = 0; k = 0;
    do
    :: k < 2 * SETS -> if :: COUNT(released[k]) + C >= T -> opened++ :: else fi; k++
    :: else -> break
    od;
    assert(opened <= 1);
    both(0, 0); both(0, 1); both(1, 0); both(1, 1); both(2, 0); both(2, 1);
    opened = 0; k = 0
}

inline both(u, r) {
    sum_b = 0; sum_s = 0; set = 0; k = 0;
    do
    :: k < SETS ->
        if
        :: HAS(k, u) -> sum_b = sum_b | released[AT(r, k)]
        :: else -> sum_s = sum_s | released[AT(r, k)]
        fi; k++
    :: else -> break
    od;
    if
    :: HAS(masked[r], u) -> assert(!((HAS(sum_b, u) || COUNT(sum_b & ~BIT(u)) + C >= T) && COUNT(sum_s) + C >= T))
    :: else
    fi;
    sum_b = 0; sum_s = 0; k = 0
}

inline choose(r, u3) {
    if :: r = 0 :: r = 1 fi;
    u3 = 0;
    do :: u3 < SETS - 1 -> u3++ :: break od
}

proctype client(byte u) {
    byte r, u3;
end:
    do
    :: mask(u, 0)
    :: mask(u, 1)
    :: atomic { choose(r, u3); attest(u, r, u3); r = 0; u3 = 0 }
    :: atomic { choose(r, u3); release(u, r, u3); r = 0; u3 = 0 }
    od
}

init {
    atomic { run client(0); run client(1); run client(2) }
}
