/* What lies between the rounds: the marks of every data set, and a server that lies to all of them.

One round is a black box (its own proof is the exhaustive driver of the tests): honest clients contribute, attest one U3,
release; once t clients released, the server knows the sum of U3. Everything else is free: which site is told what, when,
in which order; up to C clients are the server's, they sign and attest whatever helps and never say what they released.
README.md says what is abstracted, and how the events are named in the code. The site's checks are the macros below;
a -D takes one out.

Per site, a mask has one bit per round start (slot). All sites are alike, so their rows are kept sorted: symmetry. */

#ifndef N
#define N 4 /* clients that are pinned */
#endif
#ifndef C
#define C 1 /* of them, the server's own */
#endif
#ifndef K
#define K 3 /* round starts that the server signs */
#endif
#ifndef E
#define E 0 /* operators that accept one and the same round by name, at most */
#endif
#ifndef RESTARTS
#define RESTARTS 1 /* of all sites together */
#endif
#ifndef SECOND
#define SECOND 0 /* what the second round start is: 1 to 6 as in open_round, or 0: the server chooses */
#endif
#ifndef THIRD
#define THIRD 0
#endif
#define H (N - C)
#define T ((N + C) / 2 + 1)
#define QUORUM (T - C) /* honest clients without whom no t attest, and no t release */

/* The statement: whatever sums the server adds and subtracts, so many honest updates at least stay added up. For E = 0
   that is t - c, as in one sum; for E < t - c still 2 or more: nobody is singled out. With E = t - c it ends. */
#define BOTH_ENDS (2 * (QUORUM - E))
#ifndef LEAST
#define LEAST (QUORUM < BOTH_ENDS -> QUORUM : BOTH_ENDS)
#endif

#define BIT(k) (1 << (k))
#define HAS(mask, k) ((mask) & BIT(k))
#define ONE(mask, k) (((mask) >> (k)) & 1)
#if N - C == 3
#define COUNT(row, k) (ONE(row[0], k) + ONE(row[1], k) + ONE(row[2], k))
#elif N - C == 4
#define COUNT(row, k) (ONE(row[0], k) + ONE(row[1], k) + ONE(row[2], k) + ONE(row[3], k))
#else
#error "three or four honest sites"
#endif

/* Round starts: run 0 is run-1 of a project, run 1 is run-2 of it, run 2 is run-1 of another project. */
byte training_run[K], number[K], attempt[K];
bool anew[K];    /* this run does not start over: its first model is its own, not the one that the others start with */
byte model[K];   /* on which its members train: its hash is in the identifier of the round */
byte claims[K];  /* what the advertisements in U1 say exposes this attempt */
byte told;       /* U1 was told to somebody: it is closed */
byte attested;   /* t clients attested U3: it is closed */

/* Sites: the store. */
byte live[H];     /* 1 + the slot that was joined last */
byte open[H];     /* 1 + the round of the open release */
byte joined[H], contributed[H], released[H], replayed[H];
byte exposing[H]; /* own releases that expose the live slot */
byte accepted[H]; /* acceptances that are not used up */
byte used[H * K]; /* acceptances that the contribution to a slot used up */
byte settled[H];  /* rounds that count as replayed, because a later round that was accepted after them was */
byte before[H * K]; /* for a slot: what was replayed or settled when it was joined */
byte update[H * K]; /* for a slot: the model that this site's update is of */
/* Memory, and what only the statement asks for. */
byte alive[H];    /* slots of which this process holds a session */
byte named[H];    /* rounds that the operator ever accepted by name */
byte extra[H];    /* one more mask, where a variant needs it */

byte restarts;
byte i, j, k, l, code, other; /* scratch, zero between the events */
int sum, weight[K];

#define OF_RUN(r) ((training_run[0] == r) | (training_run[1] == r) << 1 | (K > 2 && training_run[2 % K] == r) << 2 | (K > 3 && training_run[3 % K] == r) << 3)

/* ---- checks ---------------------------------------------------------------------------------------------------- */

#define LATER_OR_SAME(k, by) ((training_run[by] == training_run[k]) && (number[by] > number[k] || number[by] == number[k] && attempt[by] >= attempt[k]))
#define SAME_NUMBER(k, by) ((training_run[by] == training_run[k]) && number[by] >= number[k])
#define ANY(s, row, k, relation) \
    (HAS(row[s], 0) && relation(k, 0) || HAS(row[s], 1) && relation(k, 1) || \
     K > 2 && HAS(row[s], 2) && relation(k, 2 % K) || K > 3 && HAS(row[s], 3) && relation(k, 3 % K))

#ifdef NO_C03
#define C03(s, k) (!HAS(joined[s], k))
#else
#define C03(s, k) (!ANY(s, joined, k, LATER_OR_SAME))
#endif

/* Receipts are the server's word: it can lead every honest log to one head. What is left of C-04 is the number. */
#ifdef NO_C04
#define C04(s, k) true
#else
#define C04(s, k) (!ANY(s, replayed, k, SAME_NUMBER))
#endif

#ifdef NO_C14
#define C14(s, k) true
#else
#define C14(s, k) (!ANY(s, contributed, k, SAME_NUMBER))
#endif

#if defined(MARKS_PER_RUN)
#define LATER(k, by) ((training_run[by] == training_run[k]) && (number[by] > number[k] || number[by] == number[k] && attempt[by] > attempt[k]))
#define LIVE(s, k) (!ANY(s, joined, k, LATER))
#define OPEN(s, k) (released[s] & OF_RUN(training_run[k]) & ~replayed[s])
#else
#define LIVE(s, k) (live[s] == k + 1)
#define OPEN(s, k) (open[s] -> BIT(open[s] - 1) : 0)
#endif

#if defined(NO_LIVE_AT_CONTRIBUTE) || defined(NO_RECHECK)
#define C24_CONTRIBUTE(s, k) true
#else
#define C24_CONTRIBUTE(s, k) LIVE(s, k)
#endif
#if defined(NO_LIVE_AT_RELEASE)
#define C24_RELEASE(s, k) true
#else
#define C24_RELEASE(s, k) LIVE(s, k)
#endif

/* A site's model: the first one of the run, or what it has made of the rounds of this run that it replayed. Rounds of other
   runs change nothing, whatever is known of them. */
#define SEEN_OF_RUN(s, k) (replayed[s] & OF_RUN(training_run[k]))
#define MODEL(s, k) (SEEN_OF_RUN(s, k) -> SEEN_OF_RUN(s, k) : (anew[k] -> 16 + training_run[k] : 16))
#define C23(s, k) ((joined[0] | joined[1] | joined[2] | joined[H - 1]) & BIT(k) -> model[k] == MODEL(s, k) : true)

#if defined(REPLAY_ANY_TIME)
#define CLEARED(s, k) (replayed[s] | settled[s])
#elif defined(REPLAY_IS_GRANTED) || defined(REPLAY_BY_RUN_NAME)
#define CLEARED(s, k) (before[(s) * K + k] | extra[s])
#else
#define CLEARED(s, k) before[(s) * K + k]
#endif

/* Rounds on model m, of other runs than that of slot k, or of the same. */
#define ON_1(m, x, relation) ((model[x] == m && relation) << (x))
#define ON_MODEL(m, k, op) \
    (ON_1(m, 0, training_run[0] op training_run[k]) | ON_1(m, 1, training_run[1] op training_run[k]) | \
     (K > 2 -> ON_1(m, 2 % K, training_run[2 % K] op training_run[k]) : 0) | \
     (K > 3 -> ON_1(m, 3 % K, training_run[3 % K] op training_run[k]) : 0))
/* A run may start over from a model on which another run released, replayed or not. */
#ifdef NO_MODEL_CHECK
#define ELSEWHERE(m, k) 0
#else
#define ELSEWHERE(m, k) ON_MODEL(m, k, !=)
#endif
/* A release that was superseded in another run still exposes this one, where it is of this model and was not replayed. */
#ifdef SUPERSEDED_ANYWHERE
#define SUPERSEDED(s, k) 0
#else
#define SUPERSEDED(s, k) (ON_MODEL(MODEL(s, k), k, ==) & ~(replayed[s] | settled[s]))
#endif
#if defined(STORE_IN_MEMORY) || defined(REPLAY_IS_GRANTED) || defined(REPLAY_BY_RUN_NAME)
#define RELEASED(s) (released[s] & ~extra[s]) /* what the store says */
#else
#define RELEASED(s) released[s]
#endif
#ifdef MARKS_PER_RUN
#define EXPOSING(s, k) OPEN(s, k)
#else
#define EXPOSING(s, k) (OPEN(s, k) | RELEASED(s) & (ELSEWHERE(MODEL(s, k), k) | SUPERSEDED(s, k)))
#endif

#ifdef ACCEPTANCE_IS_A_SWITCH
#define ACCEPTED(s) (named[s] -> 255 : 0)
#else
#define ACCEPTED(s) accepted[s]
#endif

#ifdef NO_C26
#define OTHERS_EXPOSE(s, k) 0
#else
#define OTHERS_EXPOSE(s, k) (claims[k] & (~CLEARED(s, k) | ELSEWHERE(update[(s) * K + k], k)))
#endif
#if defined(REPLAY_ANY_TIME)
#define NEEDED(s, k) ((exposing[s] & ~replayed[s]) | OTHERS_EXPOSE(s, k))
#else
#define NEEDED(s, k) (exposing[s] | OTHERS_EXPOSE(s, k))
#endif

#ifdef PRIVATE
#define C05_JOIN(s, k) true
#define C26(s, k) true
#define C05_RELEASE(s, k) true
#else
#define C05_JOIN(s, k) (!(EXPOSING(s, k) & ~ACCEPTED(s)))
#define C26(s, k) (!(NEEDED(s, k) & ~ACCEPTED(s)))
#ifdef NO_C05_AT_RELEASE
#define C05_RELEASE(s, k) true
#else
#define C05_RELEASE(s, k) (!(OPEN(s, k) & ~used[(s) * K + k]))
#endif
#endif

/* ---- the statement --------------------------------------------------------------------------------------------- */

/* An honest site's update is the same while its model is the same. */
#define SUM_IS_OPEN(k) (COUNT(released, k) >= QUORUM)

/* Every combination of opened sums with coefficients -1, 0, 1: minors of a matrix of three rows of zeros and ones are no
   other, so for three sums that is every combination that there is. */
inline combinations_keep_together() {
    code = 1;
    do
    :: code < (K == 2 -> 9 : (K == 3 -> 27 : 81)) ->
        other = code; k = 0; sum = 0;
        do
        :: k < K -> weight[k] = (other % 3) - 1; other = other / 3;
            if :: weight[k] != 0 && !SUM_IS_OPEN(k) -> sum = 1 :: else fi; k++
        :: else -> break
        od;
        if
        :: sum == 1 /* a sum that is not open */
        :: else ->
            other = 0; i = 0; l = 0;
            do
            :: i < H ->
                k = 0;
                do
                :: k < K ->
                    if
                    :: weight[k] != 0 && HAS(contributed[i], k) ->
                        sum = 0; j = 0;
                        do
                        :: j < K ->
                            if
                            :: weight[j] != 0 && HAS(contributed[i], j) && update[i * K + j] == update[i * K + k] ->
                                if :: j < k -> sum = 0; break :: else -> sum = sum + weight[j] fi
                            :: else
                            fi; j++
                        :: else -> break
                        od;
                        if :: sum != 0 -> other++ :: else fi; l = 1
                    :: else
                    fi; k++
                :: else -> break
                od; i++
            :: else -> break
            od;
#ifdef PRIVATE
            /* With noise the statement is another: one contribution per number, whatever was opened. */
#else
            if :: l == 1 -> assert(other == 0 || other >= LEAST) :: else fi
#endif
        fi; code++
    :: else -> break
    od;
#ifdef PRIVATE
    i = 0;
    do
    :: i < H -> k = 0;
        do
        :: k < K -> j = 0;
            do
            :: j < k -> assert(!(SUM_IS_OPEN(j) && SUM_IS_OPEN(k) && HAS(contributed[i], j) && HAS(contributed[i], k) &&
                                 training_run[j] == training_run[k] && number[j] == number[k])); j++
            :: else -> break
            od; k++
        :: else -> break
        od; i++
    :: else -> break
    od;
#endif
    code = 0; other = 0; i = 0; j = 0; k = 0; l = 0; sum = 0;
    do :: i < K -> weight[i] = 0; i++ :: else -> break od;
    i = 0
}

/* ---- symmetry -------------------------------------------------------------------------------------------------- */

#define PER_SLOT(row, s, bits) (row[(s) * K] | row[(s) * K + 1] << bits | (K > 2 -> row[(s) * K + 2 % K] : 0) << 2 * bits | \
                                (K > 3 -> row[(s) * K + 3 % K] : 0) << 3 * bits)
#define KEY1(s) (live[s] | open[s] << 3 | joined[s] << 6 | contributed[s] << 10 | released[s] << 14 | replayed[s] << 18 | \
                 accepted[s] << 22 | alive[s] << 26)
#define KEY2(s) (exposing[s] | settled[s] << 4 | named[s] << 8 | extra[s] << 12)
#define KEY3(s) (PER_SLOT(before, s, 4) | PER_SLOT(used, s, 4) << 16)
#define KEY4(s) PER_SLOT(update, s, 5)
#define IS_BELOW(a, b) (KEY1(a) < KEY1(b) || KEY1(a) == KEY1(b) && (KEY2(a) < KEY2(b) || KEY2(a) == KEY2(b) && \
                        (KEY3(a) < KEY3(b) || KEY3(a) == KEY3(b) && KEY4(a) < KEY4(b))))
#define SWAP(row, a, b) other = row[a]; row[a] = row[b]; row[b] = other;
#define SORT2(a, b) \
    if \
    :: IS_BELOW(b, a) -> \
        SWAP(live, a, b) SWAP(open, a, b) SWAP(joined, a, b) SWAP(contributed, a, b) SWAP(released, a, b) \
        SWAP(replayed, a, b) SWAP(exposing, a, b) SWAP(accepted, a, b) SWAP(settled, a, b) SWAP(alive, a, b) \
        SWAP(named, a, b) SWAP(extra, a, b) \
        i = 0; \
        do \
        :: i < K -> \
            SWAP(before, (a) * K + i, (b) * K + i) SWAP(used, (a) * K + i, (b) * K + i) \
            SWAP(update, (a) * K + i, (b) * K + i) i++ \
        :: else -> break \
        od; \
        i = 0; other = 0 \
    :: else \
    fi;

inline sort_sites() {
#ifdef SORT
    SORT2(0, 1) SORT2(1, 2) SORT2(0, 1)
#if N - C == 4
    SORT2(2, 3) SORT2(1, 2) SORT2(0, 1)
#endif
#endif
    skip
}

/* ---- events of a site, each one transaction of its store --------------------------------------------------------- */

#ifdef CLAIM_BEFORE_JOIN
#define CLAIM(s, k) ((extra[s] >> 3) -> BIT((extra[s] >> 3) - 1) : 0)
#define MAY_JOIN(s, k) ((extra[s] & 7) == k + 1)
inline read_claim(s, k) {
    d_step {
        !extra[s] && !HAS(told, k) && C03(s, k) && C05_JOIN(s, k) ->
        printf("%c reads its open release for %d\n", 65 + s, k + 1);
        extra[s] = k + 1 | open[s] << 3;
        sort_sites()
    }
}
#else
#define CLAIM(s, k) exposing[s]
#define MAY_JOIN(s, k) C05_JOIN(s, k)
#endif

inline join(s, k) {
    d_step {
        !HAS(told, k) && C03(s, k) && C04(s, k) && C23(s, k) && MAY_JOIN(s, k) ->
        printf("%c join %d\n", 65 + s, k + 1);
        model[k] = MODEL(s, k); update[s * K + k] = MODEL(s, k);
        exposing[s] = EXPOSING(s, k); claims[k] = claims[k] | CLAIM(s, k);
        before[s * K + k] = replayed[s] | settled[s];
        live[s] = k + 1; joined[s] = joined[s] | BIT(k); alive[s] = alive[s] | BIT(k);
#ifdef CLAIM_BEFORE_JOIN
        extra[s] = 0;
#endif
        sort_sites()
    }
}

#ifdef NO_RECHECK
#define MAY_CONTRIBUTE(s, k) HAS(extra[s], k)
inline look_at_roster(s, k) {
    d_step {
        HAS(alive[s], k) && !HAS(extra[s], k) && COUNT(joined, k) >= QUORUM && C26(s, k) ->
        printf("%c checks the roster of %d\n", 65 + s, k + 1);
        extra[s] = extra[s] | BIT(k); told = told | BIT(k);
        sort_sites()
    }
}
#else
#define MAY_CONTRIBUTE(s, k) C26(s, k)
#endif

inline contribute(s, k) {
    d_step {
        HAS(alive[s], k) && !HAS(contributed[s], k) && !HAS(attested, k) && COUNT(joined, k) >= QUORUM &&
            C24_CONTRIBUTE(s, k) && C14(s, k) && MAY_CONTRIBUTE(s, k) ->
        printf("%c contribute %d\n", 65 + s, k + 1);
        used[s * K + k] = NEEDED(s, k);
#ifdef ACCEPTANCE_STAYS
        /* One acceptance, one contribution: what is held against this variant (extra: acceptances that were used). */
        assert(!(used[s * K + k] & extra[s]));
        extra[s] = extra[s] | used[s * K + k];
#else
        accepted[s] = accepted[s] & ~used[s * K + k];
#endif
        contributed[s] = contributed[s] | BIT(k); told = told | BIT(k);
        sort_sites()
    }
}

inline release(s, k) {
    d_step {
        HAS(attested, k) && HAS(alive[s], k) && HAS(contributed[s], k) && C24_RELEASE(s, k) && C05_RELEASE(s, k) ->
        printf("%c release %d\n", 65 + s, k + 1);
        released[s] = released[s] | BIT(k); alive[s] = alive[s] & ~BIT(k);
        if :: !HAS(replayed[s], k) -> open[s] = k + 1 :: else fi; /* its transcript may have been there already */
        if :: COUNT(released, k) == QUORUM -> printf("server opens the sum of %d\n", k + 1); combinations_keep_together() :: else fi;
        sort_sites()
    }
}

inline replay(s, k) {
    d_step {
#ifdef REPLAY_BY_RUN_NAME
        SUM_IS_OPEN(k) && (!HAS(replayed[s], k) || open[s] && number[open[s] - 1] <= number[k] && training_run[open[s] - 1] % 2 == training_run[k] % 2) ->
#else
        SUM_IS_OPEN(k) && !HAS(replayed[s], k) ->
#endif
        printf("%c replay %d\n", 65 + s, k + 1);
        replayed[s] = replayed[s] | BIT(k);
#ifdef SUPERSEDED_ANYWHERE
        settled[s] = settled[s] | used[s * K + k];
#else
        settled[s] = settled[s] | used[s * K + k] & OF_RUN(training_run[k]);
#endif
#ifdef REPLAY_BY_RUN_NAME
        if
        :: open[s] && number[open[s] - 1] <= number[k] && training_run[open[s] - 1] % 2 == training_run[k] % 2 ->
            extra[s] = extra[s] | BIT(open[s] - 1); open[s] = 0
        :: else
        fi;
#endif
        if :: open[s] == k + 1 -> open[s] = 0 :: else fi;
        sort_sites()
    }
}

#ifdef REPLAY_IS_GRANTED
inline grant(s, k) {
    d_step {
        open[s] == k + 1 -> printf("%c is granted the replay of %d\n", 65 + s, k + 1);
        extra[s] = extra[s] | BIT(k); open[s] = 0;
        sort_sites()
    }
}
#endif

inline accept_exposure(s, k) {
    d_step {
        !HAS(accepted[s], k) && (HAS(released[s], k) || live[s] && HAS(claims[live[s] - 1], k)) &&
            (HAS(named[s], k) || COUNT(named, k) < E) ->
        printf("%c accept_exposure %d\n", 65 + s, k + 1);
        accepted[s] = accepted[s] | BIT(k); named[s] = named[s] | BIT(k);
        sort_sites()
    }
}

#ifdef STORE_IN_MEMORY
#define MAY_RESTART(s) (alive[s] || open[s])
#else
#define MAY_RESTART(s) alive[s]
#endif

inline restart(s) {
    d_step {
        restarts < RESTARTS && MAY_RESTART(s) ->
        restarts++; printf("%c restart\n", 65 + s); alive[s] = 0;
#ifdef STORE_IN_MEMORY
        open[s] = 0; live[s] = 0; accepted[s] = 0; extra[s] = released[s];
#endif
        sort_sites()
    }
}

/* ---- who does what ------------------------------------------------------------------------------------------------ */

#if defined(CLAIM_BEFORE_JOIN)
#define VARIANT_EVENT(k) :: read_claim(s, k)
#elif defined(NO_RECHECK)
#define VARIANT_EVENT(k) :: look_at_roster(s, k)
#elif defined(REPLAY_IS_GRANTED)
#define VARIANT_EVENT(k) :: grant(s, k)
#else
#define VARIANT_EVENT(k)
#endif

#define SITE_EVENTS(k) \
    :: join(s, k) \
    :: contribute(s, k) \
    :: release(s, k) \
    :: replay(s, k) \
    :: accept_exposure(s, k) \
    VARIANT_EVENT(k)

proctype site(byte s) {
end:
    do
    SITE_EVENTS(0)
    SITE_EVENTS(1)
#if K > 2
    SITE_EVENTS(2)
#endif
#if K > 3
    SITE_EVENTS(3)
#endif
    :: restart(s)
    od
}

#if N - C == 3
#define ATTESTERS(k) \
    (ONE(contributed[0] & alive[0], k) + ONE(contributed[1] & alive[1], k) + ONE(contributed[2] & alive[2], k))
#else
#define ATTESTERS(k) \
    (ONE(contributed[0] & alive[0], k) + ONE(contributed[1] & alive[1], k) + ONE(contributed[2] & alive[2], k) \
     + ONE(contributed[3] & alive[3], k))
#endif

/* U3 is everybody who contributed by now; its processes that still run sign it, the live slot or not. */
inline attest(k) {
    d_step {
        !HAS(attested, k) && ATTESTERS(k) >= QUORUM ->
        printf("clients attest %d\n", k + 1);
        attested = attested | BIT(k)
    }
}

/* Kinds of the second and third round start: see open_round. */
#define MAY_BE(k, kind) (k == 1 && (SECOND == 0 || SECOND == kind) || k == 2 && (THIRD == 0 || THIRD == kind) || k == 3)

/* The server plans its round starts before the first is joined: nothing that it learns later is lost by that. */
inline open_round(k) {
    number[k] = 1;
    l = 0; other = 0;
    do :: l < k -> if :: training_run[l] == 0 -> other = l :: else fi; l++ :: else -> break od;
    if
    :: k == 0 -> printf("open_round 1: run-1 of project 1, round 1\n")
    :: MAY_BE(k, 1) -> number[k] = number[other]; attempt[k] = attempt[other] + 1; printf("open_round %d: run-1 of project 1, round %d, attempt %d\n", k + 1, number[k], attempt[k])
    :: MAY_BE(k, 2) -> number[k] = number[other] + 1; printf("open_round %d: run-1 of project 1, round %d\n", k + 1, number[k])
    :: MAY_BE(k, 3) -> new_run(k, false)
    :: MAY_BE(k, 4) -> new_run(k, true)
    :: MAY_BE(k, 5) -> other_project(k, false)
    :: MAY_BE(k, 6) -> other_project(k, true)
    fi;
    l = 0; other = 0
}

inline of_run(k, run_index, is_new) {
    training_run[k] = run_index; anew[k] = is_new; l = 0;
    do
    :: l < k -> if :: training_run[l] == run_index -> number[k]++; anew[k] = anew[l] :: else fi; l++
    :: else -> break
    od
}

inline new_run(k, is_new) {
    of_run(k, 1, is_new); printf("new_run, open_round %d: run-2 of project 1, round %d\n", k + 1, number[k]);
    printf("  its first model is %d (0: that of run-1)\n", anew[k])
}

inline other_project(k, is_new) {
    of_run(k, 2, is_new); printf("other_project, open_round %d: run-1 of project 2, round %d\n", k + 1, number[k]);
    printf("  its first model is %d (0: that of run-1)\n", anew[k])
}

init {
    atomic {
        open_round(0); open_round(1);
#if K > 2
        open_round(2);
#endif
#if K > 3
        open_round(3);
#endif
        i = 0;
        do :: i < H -> run site(i); i++ :: else -> break od;
        i = 0
    }
end:
    do
    :: attest(0)
    :: attest(1)
#if K > 2
    :: attest(2)
#endif
#if K > 3
    :: attest(3)
#endif
    od
}
