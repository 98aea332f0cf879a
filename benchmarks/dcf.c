/* Saturated DCF and CSMA/ECA in C: the peer our kernels are measured against.
 *
 *     gcc -O3 -march=native -o dcf dcf.c
 *     ./dcf --n 14 --cw-min 31 --cw-max 1023 --slots 10000000 --warmup 100000 --seed 1 --repeat 5
 *
 * Written apart from the package, from the rules alone, in the fastest form we found, with the same outputs: one JSON
 * line. Every time is in slots. A busy period is 120 slots, then 4 of DIFS. Slot s counts iff warmup <= s < slots,
 * the outcome of a busy period iff it ends in (warmup, slots].
 *
 * Where the speed comes from:
 * - Time jumps from one busy period to the next.
 * - Counters live on the *idle clock*, which counts contention slots: a station that draws c expires at clock + c and
 *   nobody is decremented. `bucket` holds the stations that expire at each value of the clock, as a 64-bit mask, and
 *   `occupied` a bit per bucket; its current word, `page`, stays in a register. So the next busy period is a count of
 *   trailing zeros away, however many stations there are.
 * - Real time is clock + lag, and lag grows by a constant per busy period.
 * - Two stations need no ring: only the difference of their counters matters (`play_pair`).
 * - Random words come in blocks from eight generators side by side in SIMD, scaled to CWmin's draw on the way.
 * - Access delays telescope: those of a station add up to the time by which its head of line moved on. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TX_SLOTS 120u
#define DIFS_SLOTS 4u
#define BUSY_SLOTS (TX_SLOTS + DIFS_SLOTS)  /* from the start of a busy period to the next contention slot */
#define JAIN_WINDOW_SLOTS 100000u
#define MAX_STATIONS 64u
#define MAX_BACKOFF 65535u
#define MAX_RING (1u << 17)                 /* MAX_BACKOFF + 1 + 64 buckets, rounded up */
#define MAX_SLOTS (1ull << 36)              /* no 32-bit counter can overflow */
#define N_BINS 3856u                        /* bin_of(MAX_SLOTS) fits; rows are an odd number of cache lines */

#define INLINE static inline __attribute__((always_inline))
#define RARE(x) __builtin_expect(!!(x), 0)

/* ---- Random draws: xoshiro256**, LANES of them side by side --------------------------------------------------- */

#define LANES 8
#define BLOCK 128                           /* a power of two */
typedef uint64_t Lanes __attribute__((vector_size(8 * LANES)));
#define ROTL(x, k) (((x) << (k)) | ((x) >> (64 - (k))))

typedef struct {
    uint64_t word[BLOCK] __attribute__((aligned(64)));   /* uniform on [0, 2^32) */
    uint64_t first[BLOCK] __attribute__((aligned(64)));  /* the same word as a draw on {0..CWmin} */
    Lanes state[4];
} Rng;

static __attribute__((noinline)) void refill(Rng *rng, uint64_t span)
{
    Lanes a = rng->state[0], b = rng->state[1], c = rng->state[2], d = rng->state[3];
    for (int k = 0; k < BLOCK; k += LANES) {
        Lanes b5 = b + (b << 2), rotated = ROTL(b5, 7), word = (rotated + (rotated << 3)) >> 32, shifted = b << 17;
        *(Lanes *)(rng->word + k) = word;
        *(Lanes *)(rng->first + k) = (word * span) >> 32;
        c ^= a; d ^= b; b ^= c; a ^= d;
        c ^= shifted;
        d = ROTL(d, 45);
    }
    rng->state[0] = a; rng->state[1] = b; rng->state[2] = c; rng->state[3] = d;
}

static void seed_rng(Rng *rng, uint64_t seed)
{
    for (int lane = 0; lane < LANES; lane++)
        for (int j = 0; j < 4; j++) {       /* SplitMix64 */
            uint64_t z = (seed += 0x9e3779b97f4a7c15u);
            z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
            z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
            rng->state[j][lane] = z ^ (z >> 31);
        }
}

/* ---- State ---------------------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t n, cw_min, cw_max, eca_backoff, retry_limit, n_slots, warmup, seed, repeat;
    bool eca, bianchi;
} Config;

typedef struct { uint32_t span, failures; } Retry;      /* the span after the next collision; failures so far */

typedef struct {                            /* slots by kind, and busy periods, before some instant */
    uint64_t idle, success, collision, difs, n_success, n_collision;
} Totals;

typedef struct {
    Rng rng;
    uint64_t next_word;
    uint64_t span_min, span_max;            /* a span is CW + 1 */
    Retry fresh;                            /* of a packet that has not failed yet */
    uint64_t eca_backoff, retry_limit, ring_mask;
    /* contention starts, or goes on, at real time clock + lag */
    uint64_t clock, lag;
    uint64_t page, page_start;              /* ring: occupied[] around the clock, and the clock value of its bit 0 */
    uint64_t gap, rest, first;              /* pair: `first` expires in `gap` idle slots, the other `rest` after it */
    uint64_t n_collision, n_success_warmup, *log, n_log; /* log: end_slot << 8 | station */
    /* per station */
    uint64_t head_since[MAX_STATIONS];      /* when the packet at the head of the line got there */
    Retry retry[MAX_STATIONS];
    uint64_t collided[MAX_STATIONS], dropped[MAX_STATIONS], drop_time[MAX_STATIONS];
    uint64_t occupied[MAX_RING / 64];
    uint64_t bucket[MAX_RING];
    uint32_t delays[MAX_STATIONS][N_BINS];
} Sim;

typedef struct {
    Totals window;
    uint64_t delivered[MAX_STATIONS], delay_sum[MAX_STATIONS];
    double jain, jain_short, jain_window, capture, percentile[3];
} Outputs;

static Sim sim;                             /* 3.3 MB, of which a run touches what its scenario needs */
static const double PERCENT[3] = {50, 95, 99};

/* Access delays below 256 slots have a bin each; above that an octave has 128. */
INLINE uint64_t bin_of(uint64_t delay)
{
    uint64_t octave = 56 - (uint64_t)__builtin_clzll(delay | 128);
    return (octave << 7) + (delay >> octave);
}

static double bin_middle(uint64_t bin)
{
    if (bin < 256) return (double)bin;
    uint64_t octave = (bin >> 7) - 1;
    return (double)(((bin & 127) + 128) << octave) + 0.5 * (double)((1ull << octave) - 1);
}

/* ---- Rules ---------------------------------------------------------------------------------------------------- */

/* The next word as a draw on {0..span - 1}; `is_first` promises that span is span_min. */
INLINE uint64_t draw(Sim *s, uint64_t *next_word, uint64_t span, bool is_first)
{
    if (RARE(*next_word % BLOCK == 0)) { refill(&s->rng, s->span_min); *next_word = 0; }
    uint64_t k = (*next_word)++;
    return is_first ? s->rng.first[k] : (s->rng.word[k] * span) >> 32;
}

INLINE void succeed(Sim *s, uint64_t i, uint64_t end)
{
    s->delays[i][bin_of(end - s->head_since[i])]++;
    s->head_since[i] = end;
    s->retry[i] = s->fresh;
}

/* Returns the span to redraw from. */
INLINE uint64_t fail(Sim *s, uint64_t i, uint64_t end)
{
    uint64_t span = s->retry[i].span;
    s->collided[i]++;
    if (RARE(++s->retry[i].failures == s->retry_limit)) {
        s->dropped[i]++;
        s->drop_time[i] += end - s->head_since[i];
        s->head_since[i] = end;
        s->retry[i].failures = 0;
        span = s->span_min;
    }
    s->retry[i].span = (uint32_t)(2 * span < s->span_max ? 2 * span : s->span_max);
    return span;
}

/* Files a set of stations under clock value `at`. The ring has at least 64 buckets to spare, so that a word of
 * `occupied` never mixes this lap with the next; the copy of the current page in memory may be stale. */
INLINE void expire(Sim *s, uint64_t stations, uint64_t at, uint64_t page_start, uint64_t *page)
{
    uint64_t bit = 1ull << (at % 64), k = at & s->ring_mask;
    s->bucket[k] |= stations;
    s->occupied[k / 64] |= bit;
    *page |= bit & -(uint64_t)(at - page_start < 64);
}

/* Plays every busy period that ends at or before `limit`. Under `bianchi` the clock also counts busy periods. */
INLINE void play_ring(Sim *s, uint64_t limit, bool bianchi, bool eca)
{
    uint64_t clock = s->clock, lag = s->lag, page = s->page, page_start = s->page_start, next_word = s->next_word;
    const uint64_t ring_mask = s->ring_mask;
    uint64_t *log = s->log + s->n_log;
    for (;;) {
        while (RARE(!page)) {
            s->occupied[(page_start & ring_mask) / 64] = 0;
            page_start += 64;
            page = s->occupied[(page_start & ring_mask) / 64];
        }
        uint64_t at = page_start + (uint64_t)__builtin_ctzll(page);
        uint64_t end = at + lag + TX_SLOTS;
        if (RARE(end > limit)) break;
        lag += BUSY_SLOTS - bianchi;
        clock = at + bianchi;
        page &= page - 1;
        uint64_t senders = s->bucket[at & ring_mask];
        s->bucket[at & ring_mask] = 0;
        if (!(senders & (senders - 1))) {
            uint64_t i = (uint64_t)__builtin_ctzll(senders);
            *log++ = end << 8 | i;
            succeed(s, i, end);
            uint64_t backoff = eca ? s->eca_backoff : draw(s, &next_word, s->span_min, true);
            expire(s, senders, clock + backoff, page_start, &page);
            continue;
        }
        s->n_collision++;
        do {
            uint64_t span = fail(s, (uint64_t)__builtin_ctzll(senders), end);
            expire(s, senders & -senders, clock + draw(s, &next_word, span, false), page_start, &page);
        } while (senders &= senders - 1);
    }
    s->clock = clock; s->lag = lag; s->page = page; s->page_start = page_start; s->next_word = next_word;
    s->n_log = (uint64_t)(log - s->log);
}

INLINE void set_pair(Sim *s, uint64_t backoff0, uint64_t backoff1)
{
    s->first = backoff1 < backoff0;
    s->gap = s->first ? backoff1 : backoff0;
    s->rest = (s->first ? backoff0 : backoff1) - s->gap;
}

/* The same for two stations, with the same draws in the same order, hence the same result. */
INLINE void play_pair(Sim *s, uint64_t limit, bool bianchi, bool eca)
{
    uint64_t clock = s->clock, lag = s->lag, gap = s->gap, rest = s->rest, i = s->first, next_word = s->next_word;
    uint64_t *log = s->log + s->n_log;
    for (;;) {
        uint64_t end = clock + gap + lag + TX_SLOTS;
        if (RARE(end > limit)) break;
        lag += BUSY_SLOTS - bianchi;
        clock += gap + bianchi;
        if (rest) {
            *log++ = end << 8 | i;
            succeed(s, i, end);
            uint64_t other = rest - bianchi, backoff = eca ? s->eca_backoff : draw(s, &next_word, s->span_min, true);
            int64_t ahead = (int64_t)(backoff - other), same = ahead >> 63;     /* -1: the same station again */
            gap = other + (uint64_t)(ahead & same);                             /* by arithmetic: as a branch it */
            rest = (uint64_t)((ahead ^ same) - same);                           /* would be a coin flip */
            i ^= (uint64_t)(same + 1);
        } else {
            s->n_collision++;
            uint64_t backoff0 = draw(s, &next_word, fail(s, 0, end), false);
            set_pair(s, backoff0, draw(s, &next_word, fail(s, 1, end), false));
            gap = s->gap; rest = s->rest; i = s->first;
        }
    }
    s->clock = clock; s->lag = lag; s->gap = gap; s->rest = rest; s->first = i; s->next_word = next_word;
    s->n_log = (uint64_t)(log - s->log);
}

/* One compiled loop per rule set: inside it nothing asks which count-down is in force. */
#define LOOP(name, play, bianchi, eca) \
    static __attribute__((noinline)) void name(Sim *s, uint64_t limit) { play(s, limit, bianchi, eca); }
LOOP(ring_frozen_dcf, play_ring, 0, 0)  LOOP(ring_frozen_eca, play_ring, 0, 1)
LOOP(ring_bianchi_dcf, play_ring, 1, 0) LOOP(ring_bianchi_eca, play_ring, 1, 1)
LOOP(pair_frozen_dcf, play_pair, 0, 0)  LOOP(pair_frozen_eca, play_pair, 0, 1)
LOOP(pair_bianchi_dcf, play_pair, 1, 0) LOOP(pair_bianchi_eca, play_pair, 1, 1)
static void (*const LOOPS[2][2][2])(Sim *, uint64_t) = {
    {{ring_frozen_dcf, ring_frozen_eca}, {ring_bianchi_dcf, ring_bianchi_eca}},
    {{pair_frozen_dcf, pair_frozen_eca}, {pair_bianchi_dcf, pair_bianchi_eca}},
};

#ifndef PAIR_STATIONS                       /* -DPAIR_STATIONS=0 plays two stations on the ring, to compare */
#define PAIR_STATIONS 2
#endif

static void start(Sim *s, const Config *c)
{
    uint64_t farthest = c->eca && c->eca_backoff > c->cw_max ? c->eca_backoff : c->cw_max, ring = 64;
    while (ring < farthest + 1 + 64) ring *= 2;
    s->ring_mask = ring - 1;
    s->span_min = c->cw_min + 1;
    s->span_max = c->cw_max + 1;
    s->fresh = (Retry){(uint32_t)(2 * s->span_min < s->span_max ? 2 * s->span_min : s->span_max), 0};
    s->eca_backoff = c->eca_backoff;
    s->retry_limit = c->retry_limit;
    seed_rng(&s->rng, c->seed);
    s->next_word = 0;
    s->clock = s->lag = s->page = s->page_start = s->n_collision = s->n_success_warmup = s->n_log = 0;
    memset(s->bucket, 0, ring * sizeof *s->bucket);
    memset(s->occupied, 0, ring / 64 * sizeof *s->occupied);
    for (uint64_t i = 0; i < c->n; i++) {
        s->head_since[i] = 0;
        s->retry[i] = s->fresh;
    }
    if (c->n == PAIR_STATIONS) {
        uint64_t backoff0 = draw(s, &s->next_word, s->span_min, true);
        set_pair(s, backoff0, draw(s, &s->next_word, s->span_min, true));
    } else {
        for (uint64_t i = 0; i < c->n; i++)
            expire(s, 1ull << i, draw(s, &s->next_word, s->span_min, true), 0, &s->page);
    }
}

static void clear_statistics(Sim *s, const Config *c)
{
    uint64_t bins = bin_of(c->n_slots) + 1;
    for (uint64_t i = 0; i < c->n; i++) {
        s->collided[i] = s->dropped[i] = s->drop_time[i] = 0;
        memset(s->delays[i], 0, bins * sizeof **s->delays);
    }
}

/* ---- Outputs -------------------------------------------------------------------------------------------------- */

static uint64_t excess(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }

/* Slots before `limit`, where the loop has just stopped: the busy period that comes next ends after it. */
static Totals totals(const Sim *s, const Config *c, uint64_t limit)
{
    bool pair = c->n == PAIR_STATIONS;
    uint64_t at = pair ? s->clock + s->gap : s->page_start + (uint64_t)__builtin_ctzll(s->page);
    uint64_t senders = s->bucket[at & s->ring_mask];
    bool lone = pair ? s->rest > 0 : !(senders & (senders - 1));
    uint64_t resume = s->clock + s->lag, begin = at + s->lag;
    Totals t = {.n_success = s->n_success_warmup + s->n_log, .n_collision = s->n_collision};
    uint64_t n_busy = t.n_success + t.n_collision, waited = excess(limit, resume);
    t.idle = s->clock - (c->bianchi ? n_busy : 0) + (waited < begin - resume ? waited : begin - resume);
    t.success = TX_SLOTS * t.n_success + (lone ? excess(limit, begin) : 0);
    t.collision = TX_SLOTS * t.n_collision + (lone ? 0 : excess(limit, begin));
    t.difs = DIFS_SLOTS * n_busy - excess(resume, limit);
    return t;
}

/* Jain's index of the successes log[from..to), which are also added to `delivered`. */
static double jain(const uint64_t *log, uint64_t from, uint64_t to, uint64_t n, uint64_t *delivered)
{
    uint64_t squares = 0, k = from;
    if (n <= 4) {                           /* four 16-bit counters in one word, so that the loop becomes SIMD */
        uint64_t packed = 0;
        for (; k < to; k++) packed += 1ull << (log[k] % 4 * 16);
        for (uint64_t i = 0; i < 4; i++) {
            uint64_t x = packed >> (16 * i) & 65535;
            delivered[i] += x;
            squares += x * x;
        }
    } else {                                /* two rows, so that neighbours never wait for one counter */
        uint64_t count[2][MAX_STATIONS];for (uint64_t i = 0; i < n; i++) count[0][i] = count[1][i] = 0;
        for (; k + 1 < to; k += 2) { count[0][log[k] & 255]++; count[1][log[k + 1] & 255]++; }
        if (k < to) count[0][log[k] & 255]++;
        for (uint64_t i = 0; i < n; i++) {
            uint64_t x = count[0][i] + count[1][i];
            delivered[i] += x;
            squares += x * x;
        }
    }
    return (double)(to - from) * (double)(to - from) / ((double)n * (double)squares);
}

/* The first entry of log[from..to) that ends after `slot`. */
static uint64_t first_after(const uint64_t *log, uint64_t from, uint64_t to, uint64_t slot)
{
    while (from < to) {
        uint64_t middle = from + (to - from) / 2;
        if (log[middle] >> 8 > slot) to = middle; else from = middle + 1;
    }
    return from;
}

static void fairness(const Sim *s, const Config *c, Outputs *o)
{
    const uint64_t *log = s->log, n_log = s->n_log, block = 10 * c->n, n_blocks = n_log / block;
    uint64_t same = 0, n_windows = 0, ignored[MAX_STATIONS];
    double squares = 0, sum = 0;
    memset(o->delivered, 0, sizeof o->delivered);
    for (uint64_t b = 0; b < n_blocks; b++) sum += jain(log, b * block, (b + 1) * block, c->n, o->delivered);
    jain(log, n_blocks * block, n_log, c->n, o->delivered);
    o->jain_short = sum / (double)n_blocks;
    for (uint64_t i = 0; i < c->n; i++) squares += (double)o->delivered[i] * (double)o->delivered[i];
    o->jain = (double)n_log * (double)n_log / ((double)c->n * squares);

    sum = 0;
    for (uint64_t from = 0, slot = c->warmup; slot + JAIN_WINDOW_SLOTS <= c->n_slots; ) {
        uint64_t most = from + JAIN_WINDOW_SLOTS / BUSY_SLOTS + 2;
        uint64_t to = first_after(log, from, most < n_log ? most : n_log, slot += JAIN_WINDOW_SLOTS);
        if (to > from) { sum += jain(log, from, to, c->n, ignored); n_windows++; }  /* 0/0 without a success */
        from = to;
    }
    o->jain_window = sum / (double)n_windows;
    for (uint64_t k = 1; k < n_log; k++) same += ((log[k] ^ log[k - 1]) & 255) == 0;
    o->capture = n_log > 1 ? (double)same / (double)(n_log - 1) : NAN;
}

/* The smallest bins that have 50, 95 and 99 % of all access delays in or below them. */
static void percentiles(const Sim *s, const Config *c, Outputs *o)
{
    static uint64_t pooled[N_BINS];
    uint64_t bins = bin_of(c->n_slots) + 1, below = 0, bin = 0;
    memset(pooled, 0, sizeof pooled);
    for (uint64_t i = 0; i < c->n; i++)
        for (uint64_t b = 0; b < bins; b++) pooled[b] += s->delays[i][b];
    for (int q = 0; q < 3; q++) {
        const double wanted = PERCENT[q] / 100 * (double)s->n_log;
        while (bin < bins && (double)(below + pooled[bin]) < wanted) below += pooled[bin++];
        o->percentile[q] = s->n_log ? bin_middle(bin) : NAN;
    }
}

static void run(Sim *s, const Config *c, Outputs *o)
{
    uint64_t head_at_warmup[MAX_STATIONS];
    void (*play)(Sim *, uint64_t) = LOOPS[c->n == PAIR_STATIONS][c->bianchi][c->eca];
    start(s, c);
    play(s, c->warmup);
    Totals before = totals(s, c, c->warmup);
    s->n_success_warmup = s->n_log;
    s->n_log = 0;
    clear_statistics(s, c);
    memcpy(head_at_warmup, s->head_since, sizeof head_at_warmup);
    play(s, c->n_slots);
    Totals after = totals(s, c, c->n_slots);
    o->window = (Totals){after.idle - before.idle, after.success - before.success, after.collision - before.collision,
                         after.difs - before.difs, s->n_log, after.n_collision - before.n_collision};
    for (uint64_t i = 0; i < c->n; i++) o->delay_sum[i] = s->head_since[i] - head_at_warmup[i] - s->drop_time[i];
    fairness(s, c, o);
    percentiles(s, c, o);
}

/* ---- Command line --------------------------------------------------------------------------------------------- */

static double sum(const uint64_t *x, uint64_t n)
{
    uint64_t total = 0;
    while (n--) total += x[n];
    return (double)total;
}

static void print_array(const char *name, const uint64_t *x, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        if (i) printf(", %" PRIu64, x[i]); else printf(", \"%s\": [%" PRIu64, name, x[i]);
    }
    printf("]");
}

static void print_json(const Sim *s, const Config *c, const Outputs *o, double best, double median)
{
    const Totals *w = &o->window;
    const double slots = (double)(c->n_slots - c->warmup), successes = (double)w->n_success;
    const double collisions = (double)w->n_collision, collided = sum(s->collided, c->n);
    const struct { const char *name; double value; } numbers[] = {      /* counts below 2^53 print exactly */
        {"cw_min", (double)c->cw_min}, {"cw_max", (double)c->cw_max},
        {"eca_backoff_slots", c->eca ? (double)c->eca_backoff : NAN}, {"retry_limit", (double)c->retry_limit},
        {"n_slots", (double)c->n_slots}, {"warmup_slots", (double)c->warmup}, {"repeat", (double)c->repeat},
        {"cpu_seconds", best}, {"cpu_seconds_median", median},
        {"idle_slots", (double)w->idle}, {"success_slots", (double)w->success},
        {"collision_slots", (double)w->collision}, {"difs_slots", (double)w->difs},
        {"delivered", successes}, {"collision_events", collisions}, {"dropped", sum(s->dropped, c->n)},
        {"throughput_ratio", TX_SLOTS * successes / slots}, {"collision_rate", collided / (successes + collided)},
        {"collision_event_rate", collisions / (successes + collisions)},
        {"mean_access_delay_slots", sum(o->delay_sum, c->n) / successes}, {"access_delay_p50_slots", o->percentile[0]},
        {"access_delay_p95_slots", o->percentile[1]}, {"access_delay_p99_slots", o->percentile[2]},
        {"jain_index", o->jain}, {"jain_short", o->jain_short}, {"jain_window_100000", o->jain_window},
        {"capture_index", o->capture}};
    printf("{\"n_stations\": %" PRIu64 ", \"countdown\": \"%s\", \"seed\": %" PRIu64, c->n,
           c->bianchi ? "bianchi" : "frozen", c->seed);
    for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++)
        printf(isfinite(numbers[k].value) ? ", \"%s\": %.15g" : ", \"%s\": null", numbers[k].name, numbers[k].value);
    print_array("station_delivered", o->delivered, c->n);
    print_array("station_collided", s->collided, c->n);
    print_array("station_dropped", s->dropped, c->n);
    print_array("station_access_delay_sum_slots", o->delay_sum, c->n);
    printf("}\n");
}

static _Noreturn void refuse(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("dcf: ", stderr);
    vfprintf(stderr, format, arguments);
    fputs("\n", stderr);
    exit(2);
}

static uint64_t integer(const char *option, const char *text, uint64_t low, uint64_t high)
{
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || value < low || value > high)
        refuse("%s must be an integer from %" PRIu64 " to %" PRIu64 ", got '%s'", option, low, high, text);
    return value;
}

static Config parse(int argc, char **argv)
{
    Config c = {.n = 2, .cw_min = 31, .cw_max = 1023, .n_slots = 10000000, .seed = 1, .repeat = 1};
    const struct { const char *name; uint64_t *value, low, high; } options[] = {
        {"--n", &c.n, 1, MAX_STATIONS}, {"--repeat", &c.repeat, 1, 1000}, {"--seed", &c.seed, 0, UINT64_MAX},
        {"--cw-min", &c.cw_min, 0, MAX_BACKOFF}, {"--cw-max", &c.cw_max, 0, MAX_BACKOFF},
        {"--eca", &c.eca_backoff, 0, MAX_BACKOFF}, {"--retry", &c.retry_limit, 0, UINT32_MAX},
        {"--slots", &c.n_slots, 1, MAX_SLOTS}, {"--warmup", &c.warmup, 0, MAX_SLOTS}};
    const size_t n_options = sizeof options / sizeof *options;
    for (int a = 1; a < argc; a += 2) {
        const char *name = argv[a], *text = argv[a + 1];        /* argv[argc] is NULL */
        size_t k = 0;
        while (k < n_options && strcmp(name, options[k].name)) k++;
        if (k == n_options && strcmp(name, "--countdown")) refuse("unknown option '%s'", name);
        if (!text) refuse("%s needs a value", name);
        if (k < n_options) {
            *options[k].value = integer(name, text, options[k].low, options[k].high);
            c.eca |= options[k].value == &c.eca_backoff;
        } else {
            c.bianchi = !strcmp(text, "bianchi");
            if (!c.bianchi && strcmp(text, "frozen")) refuse("--countdown must be frozen or bianchi, got '%s'", text);
        }
    }
    if (c.cw_min > c.cw_max) refuse("--cw-min %" PRIu64 " exceeds --cw-max %" PRIu64, c.cw_min, c.cw_max);
    if (c.warmup >= c.n_slots) refuse("--warmup %" PRIu64 " leaves nothing of --slots %" PRIu64, c.warmup, c.n_slots);
    return c;
}

static double cpu_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    Config c = parse(argc, argv);
    static Outputs outputs;
    static double seconds[1000];
    sim.log = malloc((c.n_slots / BUSY_SLOTS + 2) * sizeof *sim.log);
    if (!sim.log) refuse("no memory for the success log of %" PRIu64 " slots", c.n_slots);
    for (uint64_t k = 0; k < c.repeat; k++) {
        double begin = cpu_seconds();
        run(&sim, &c, &outputs);
        seconds[k] = cpu_seconds() - begin;
    }
    qsort(seconds, c.repeat, sizeof *seconds, by_value);
    print_json(&sim, &c, &outputs, seconds[0], (seconds[(c.repeat - 1) / 2] + seconds[c.repeat / 2]) / 2);
    free(sim.log);
    return 0;
}
