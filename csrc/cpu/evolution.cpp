// The steps of mdcp_fast/ops/evolution.py between two calls of the evaluator. Each takes
// microseconds, less than a thread takes to start: one thread does them. Random numbers come from
// the caller.
#include "ops/evolution.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/mersenne.h"

namespace mdcp::cpu {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kTiny = std::numeric_limits<double>::min();
constexpr double kSpread = 0.1;  // of scales and rates around their memories

// The first `count` of the indices of values [n] in the order of (value, index).
void smallest(const double* values, int64_t n, int64_t count, std::vector<int64_t>& order) {
    order.resize(n);
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + count, order.end(),
                      [values](int64_t a, int64_t b) {
                          return values[a] != values[b] ? values[a] < values[b] : a < b;
                      });
    order.resize(count);
}

int64_t rounded(double value, int64_t low, int64_t high) {
    return std::clamp<int64_t>(std::llrint(value), low, high);
}

// Cauchy, at most 1, drawn from its positive part by chance in [0, 1).
double positive_cauchy(double location, double chance) {
    const double below = 0.5 - std::atan(location / kSpread) / kPi;
    const double quantile = below + (1.0 - below) * std::clamp(chance, 1e-12, 1.0 - 1e-12);
    return std::clamp(location + kSpread * std::tan(kPi * (quantile - 0.5)), 1e-12, 1.0);
}

// One run's part of the state.
struct Run {
    double *members, *trials, *scores, *scales, *rates, *archive, *scale_memory, *rate_memory;
    int64_t &archived, &slot;

    Run(const EvolutionState& s, int64_t run)
        : members(s.members + run * s.population * s.width),
          trials(s.trials + run * s.population * s.width),
          scores(s.scores + run * s.population),
          scales(s.scales + run * s.population),
          rates(s.rates + run * s.population),
          archive(s.archive + run * s.archive_rows * s.width),
          scale_memory(s.scale_memory + run * s.history),
          rate_memory(s.rate_memory + run * s.history),
          archived(s.archived[run]),
          slot(s.slot[run]) {}
};

// current-to-pbest/1 at coordinate d: halfway to the bound where it would cross it.
struct Mutant {
    const double *member, *pbest, *first, *second, *bottom, *top;
    double scale;

    double at(int64_t d) const {
        double value = member[d] + scale * (pbest[d] - member[d]);
        value = value + scale * (first[d] - second[d]);
        value = value < bottom[d] ? (bottom[d] + member[d]) / 2.0 : value;
        return value > top[d] ? (top[d] + member[d]) / 2.0 : value;
    }
};

// The weighted Lehmer mean; 0 where nothing has weight.
double lehmer(const std::vector<double>& weights, const double* values) {
    const double total = std::max(std::accumulate(weights.begin(), weights.end(), 0.0), kTiny);
    double top = 0.0, bottom = 0.0;
    for (size_t i = 0; i < weights.size(); ++i) {
        const double share = weights[i] / total;
        top += share * (values[i] * values[i]);
        bottom += share * values[i];
    }
    return bottom > 0.0 ? top / bottom : 0.0;
}

// Remembers the scales and rates of the trials that beat their members.
void learn(const Run& run, int64_t n, int64_t history, const double* fitness) {
    std::vector<double> gain(n);
    bool any = false;
    double largest_rate = 0.0;
    for (int64_t i = 0; i < n; ++i) {
        if (!(fitness[i] < run.scores[i])) continue;
        const double gained = run.scores[i] - fitness[i];
        gain[i] = std::isinf(gained) ? 1.0 : std::max(gained, kTiny);
        any = true;
        largest_rate = std::max(largest_rate, run.rates[i]);
    }
    if (!any) return;
    // A negative rate marks a memory that ended: once every successful rate was 0, it stays 0.
    double& rate = run.rate_memory[run.slot];
    rate = rate < 0.0 || largest_rate <= 0.0 ? -1.0 : lehmer(gain, run.rates);
    run.scale_memory[run.slot] = lehmer(gain, run.scales);
    run.slot = (run.slot + 1) % history;
}

// Rows of a table in another order, the first of them.
void reorder(double* table, int64_t width, const std::vector<int64_t>& order,
             std::vector<double>& scratch) {
    scratch.resize(order.size() * width);
    for (size_t i = 0; i < order.size(); ++i) {
        std::copy_n(table + order[i] * width, width, scratch.begin() + i * width);
    }
    std::copy(scratch.begin(), scratch.end(), table);
}

static_assert(sizeof(Mersenne) == kGeneratorWords * sizeof(uint32_t));

}  // namespace

void random_seed(const int64_t* seeds, int64_t runs, uint32_t* generators) {
    for (int64_t run = 0; run < runs; ++run) {
        reinterpret_cast<Mersenne*>(generators)[run].seed(static_cast<uint32_t>(seeds[run]));
    }
}

void random_uniform(uint32_t* generators, int64_t runs, int64_t count, double* out) {
    for (int64_t run = 0; run < runs; ++run) {
        reinterpret_cast<Mersenne*>(generators)[run].fill(out + run * count, count);
    }
}

void evolution_round(const EvolutionState& s, int64_t n, int64_t* candidates) {
    for (int64_t run = 0; run < s.runs; ++run) {
        const double* trials = Run(s, run).trials;
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t d = 0; d < s.width; ++d) {
                *candidates++ = rounded(trials[i * s.width + d], s.low[d], s.high[d]);
            }
        }
    }
}

void evolution_mutate(const EvolutionState& s, int64_t n, int64_t greedy, const double* chance,
                      const double* normal) {
    std::vector<int64_t> best;
    for (int64_t r = 0; r < s.runs; ++r) {
        const Run run(s, r);
        smallest(run.scores, n, greedy, best);
        for (int64_t i = 0; i < n; ++i, ++normal, chance += kMutationChances + s.width) {
            const auto memory = static_cast<int64_t>(chance[0] * s.history);
            const double rate = run.rate_memory[memory];
            run.rates[i] = rate < 0.0 ? 0.0 : std::clamp(rate + kSpread * *normal, 0.0, 1.0);
            run.scales[i] = positive_cauchy(run.scale_memory[memory], chance[2]);

            const int64_t pbest = best[static_cast<int64_t>(chance[3] * greedy)];
            auto first = static_cast<int64_t>(chance[4] * (n - 1));
            first += first >= i;
            // The other end of the difference may come from the archive too, but is neither of
            // these two.
            auto second = static_cast<int64_t>(chance[5] * (n + run.archived - 2));
            second += second >= std::min(i, first);
            second += second >= std::max(i, first);

            const double* row = run.members + i * s.width;
            const Mutant mutant{
                row,
                run.members + pbest * s.width,
                run.members + first * s.width,
                second < n ? run.members + second * s.width : run.archive + (second - n) * s.width,
                s.bottom,
                s.top,
                run.scales[i]};
            double* trial = run.trials + i * s.width;
            const double* crossing = chance + kMutationChances;
            for (int64_t d = 0; d < s.width; ++d) {
                const double value = mutant.at(d);
                trial[d] = crossing[d] < run.rates[i] ? value : row[d];
            }
            const auto forced = static_cast<int64_t>(chance[6] * s.width);
            trial[forced] = mutant.at(forced);
        }
    }
}

void evolution_take(const EvolutionState& s, int64_t n, const double* fitness, int64_t* best,
                    double* best_fitness) {
    for (int64_t r = 0; r < s.runs; ++r, fitness += n, best += s.width) {
        const Run run(s, r);
        for (int64_t i = 0; i < n; ++i) {
            if (!(fitness[i] <= run.scores[i])) continue;
            std::copy_n(run.trials + i * s.width, s.width, run.members + i * s.width);
            run.scores[i] = fitness[i];
        }
        const int64_t lowest = std::min_element(fitness, fitness + n) - fitness;
        if (!(fitness[lowest] < best_fitness[r])) continue;
        best_fitness[r] = fitness[lowest];
        const double* trial = run.trials + lowest * s.width;
        for (int64_t d = 0; d < s.width; ++d) best[d] = rounded(trial[d], s.low[d], s.high[d]);
    }
}

void evolution_remember(const EvolutionState& s, int64_t n, int64_t capacity, const double* fitness,
                        const double* keys) {
    std::vector<int64_t> present;
    std::vector<double> kept_keys, rows;
    std::vector<int64_t> order;
    for (int64_t r = 0; r < s.runs; ++r, fitness += n, keys += capacity + n) {
        Run run(s, r);
        learn(run, n, s.history, fitness);
        // The archive and the beaten members; where that is too many, random ones leave.
        present.clear();
        kept_keys.clear();
        for (int64_t i = 0; i < run.archived; ++i) present.push_back(i);
        for (int64_t i = 0; i < n; ++i) {
            if (fitness[i] < run.scores[i]) present.push_back(capacity + i);
        }
        for (const int64_t i : present) kept_keys.push_back(keys[i]);
        const auto all = static_cast<int64_t>(present.size());
        const int64_t kept = std::min(all, capacity);
        smallest(kept_keys.data(), all, kept, order);
        rows.resize(kept * s.width);
        for (int64_t i = 0; i < kept; ++i) {
            const int64_t from = present[order[i]];
            const double* row = from < capacity ? run.archive + from * s.width
                                                : run.members + (from - capacity) * s.width;
            std::copy_n(row, s.width, rows.begin() + i * s.width);
        }
        std::copy(rows.begin(), rows.end(), run.archive);
        run.archived = kept;
    }
}

void evolution_shrink(const EvolutionState& s, int64_t n, int64_t left, int64_t capacity) {
    std::vector<int64_t> order;
    std::vector<double> scratch;
    for (int64_t r = 0; r < s.runs; ++r) {
        Run run(s, r);
        smallest(run.scores, n, left, order);
        reorder(run.members, s.width, order, scratch);
        reorder(run.scores, 1, order, scratch);
        run.archived = std::min(run.archived, capacity);
    }
}

void descent_moves(const int64_t* start, int64_t runs, int64_t moves, int64_t width,
                   const int64_t* low, const int64_t* high, int64_t octaves, const double* chance,
                   int64_t* candidates) {
    for (int64_t run = 0; run < runs; ++run, start += width) {
        for (int64_t move = 0; move < moves; ++move, chance += 5, candidates += width) {
            std::copy_n(start, width, candidates);
            const auto step = [&](double c) {
                return int64_t{1} << static_cast<int64_t>(c * c * octaves);
            };
            const auto up = static_cast<int64_t>(chance[2] * width);
            const auto down = static_cast<int64_t>(chance[3] * width);
            const double kind = chance[4] * 6;  // below 1: only up; below 2: only down; else both
            const int64_t rise = kind < 1 || kind >= 2 ? step(chance[0]) : 0;
            const int64_t fall = kind >= 1 ? step(chance[1]) : 0;
            // Within the bounds before anything is added, so that nothing overflows.
            const auto add = [&](int64_t d, int64_t change) {
                candidates[d] +=
                    std::clamp(change, low[d] - candidates[d], high[d] - candidates[d]);
            };
            if (up == down) {
                add(up, rise - fall);
            } else {
                add(up, rise);
                add(down, -fall);
            }
        }
    }
}

bool descent_take(const int64_t* candidates, const double* fitness, int64_t runs, int64_t moves,
                  int64_t width, int64_t patience, int64_t* best, double* best_fitness,
                  int64_t* idle) {
    bool going = false;
    for (int64_t run = 0; run < runs; ++run, fitness += moves, candidates += moves * width) {
        // A run that has ended stays as it is while others go on, so that none depends on another.
        if (idle[run] >= patience) continue;
        const int64_t lowest = std::min_element(fitness, fitness + moves) - fitness;
        if (fitness[lowest] < best_fitness[run]) {
            best_fitness[run] = fitness[lowest];
            std::copy_n(candidates + lowest * width, width, best + run * width);
            idle[run] = 0;
        } else {
            ++idle[run];
        }
        going = going || idle[run] < patience;
    }
    return going;
}

}  // namespace mdcp::cpu
