// A sequence of parallel loops in one parallel region.
#pragma once
#include <atomic>
#include <thread>
#include <vector>

#include "binding.h"

namespace llmcli {

// Waits a little: a few hundred times for the other core, then also for a core to run on.
inline void relax(int spins) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
  if (spins > 2000) std::this_thread::yield();
}

// A thread's share of each phase: items that follow each other, so that what they read is fetched in one go.
class Shares {
 public:
  struct Span {
    int64_t begin, end;
  };

  Shares(const std::vector<int64_t>& ends, int64_t threads) : ends_(ends), threads_(threads) {}

  int64_t first(size_t phase) const { return phase == 0 ? 0 : ends_[phase - 1]; }
  // Counted from the first item of all phases.
  Span of(int64_t thread, size_t phase) const {
    const int64_t from = first(phase), items = ends_[phase] - from;
    return {from + items * thread / threads_, from + items * (thread + 1) / threads_};
  }

 private:
  const std::vector<int64_t>& ends_;
  const int64_t threads_;
};

// What a thread that waits may fetch: the beginning of its share of the next phase that reads much.
class Lookahead {
 public:
  // The phase has begun: from now on the next ones count.
  void pass(size_t phase) {
    if (phase_ <= phase) *this = Lookahead(phase + 1);
  }

  // One part more, in the order of memory; false where that is enough.
  template <class Ahead>
  bool fetch(const Shares& shares, int64_t thread, size_t phases, const Ahead& ahead) {
    for (; left_ > 0 && phase_ < phases; *this = Lookahead(phase_ + 1, left_)) {
      const Shares::Span share = shares.of(thread, phase_);
      if (share.begin + item_ >= share.end) continue;
      const bool more = ahead(phase_, share.begin + item_ - shares.first(phase_), part_);
      if (!more && part_ == 0) continue;
      --left_;
      part_ = more ? part_ + 1 : 0;
      item_ += !more;
      return true;
    }
    return false;
  }

  explicit Lookahead(size_t phase = 0, int left = kParts) : phase_(phase), left_(left) {}

 private:
  static constexpr int kParts = 16;  // a sixteenth of a small second-level cache, where they are 4 KiB
  size_t phase_;
  int64_t item_ = 0;
  int part_ = 0, left_;
};

// Runs f(phase, item) for every item of every phase; ends[p] counts the items of phases 0 to p. An item
// begins when those of all earlier phases are done. A thread takes its share one item at a time and then what
// is left of the others', so one that lost its core holds up an item and not a share. While it waits,
// ahead(phase, item, n), n = 0, 1, … until it is false, may fetch the n-th part of what an item of a later
// phase reads and nothing before it writes. Any number of threads may come, at any time; one alone does
// everything. f must not throw.
template <class F, class Ahead>
void run_phases(const std::vector<int64_t>& ends, const F& f, const Ahead& ahead) {
  if (ends.empty() || ends.back() == 0) return;
  struct alignas(64) Counter {
    std::atomic<int64_t> count{0};
  } done;
  const int64_t threads = torch::stable::get_num_threads();
  const Shares shares(ends, threads);
  std::vector<Counter> taken(static_cast<size_t>(threads));  // up to which item, of each share
  const auto work = [&](int64_t self, int64_t) {
    Lookahead lookahead;
    for (size_t phase = 0; phase < ends.size(); ++phase) {
      const int64_t first = shares.first(phase);
      bool more = true;
      for (int spins = 0; done.count.load(std::memory_order_acquire) < first; ++spins) {
        if (more) {
          more = lookahead.fetch(shares, self, ends.size(), ahead);
        } else {
          relax(spins);
        }
      }
      lookahead.pass(phase);
      int64_t ran = 0;
      for (int64_t i = 0; i < threads; ++i) {
        const int64_t thread = (self + i) % threads;
        const Shares::Span share = shares.of(thread, phase);
        std::atomic<int64_t>& count = taken[static_cast<size_t>(thread)].count;
        for (int64_t before = count.load(std::memory_order_relaxed);;) {
          const int64_t item = std::max(before, share.begin);
          if (item >= share.end) break;
          if (!count.compare_exchange_weak(before, item + 1, std::memory_order_relaxed)) continue;
          before = item + 1;
          f(phase, item - first);
          ++ran;
        }
      }
      if (ran > 0) done.count.fetch_add(ran, std::memory_order_acq_rel);
    }
  };
  if (threads == 1) {
    work(0, 1);
  } else {
    torch::stable::parallel_for(0, threads, 1, work);
  }
}

}  // namespace llmcli
