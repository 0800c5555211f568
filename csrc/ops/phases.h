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

// Runs f(phase, item) for every item of every phase; ends[p] counts the items of phases 0 to p. An item
// begins when those of all earlier phases are done. Threads take items in order, one at a time, so one that
// lost its core holds up an item and not a share, and a thread that waits for a phase already knows its item:
// ahead(phase, item, n), n = 0, 1, … until it is false, may fetch the n-th part of what the item reads and
// nothing before it writes. Any number of threads may come, at any time; one alone does everything. f must
// not throw.
template <class F, class Ahead>
void run_phases(const std::vector<int64_t>& ends, const F& f, const Ahead& ahead) {
  if (ends.empty() || ends.back() == 0) return;
  struct alignas(64) Counter {
    std::atomic<int64_t> count{0};
  } taken, done;
  const auto work = [&](int64_t, int64_t) {
    size_t phase = 0;
    int64_t first = 0;
    for (int64_t item; (item = taken.count.fetch_add(1, std::memory_order_relaxed)) < ends.back();) {
      while (item >= ends[phase]) first = ends[phase++];
      bool more = true;
      for (int spins = 0; done.count.load(std::memory_order_acquire) < first; ++spins) {
        if (more) {
          more = ahead(phase, item - first, spins);
        } else {
          relax(spins);
        }
      }
      f(phase, item - first);
      done.count.fetch_add(1, std::memory_order_acq_rel);
    }
  };
  const int64_t threads = torch::stable::get_num_threads();
  if (threads == 1) {
    work(0, 1);
  } else {
    torch::stable::parallel_for(0, threads, 1, work);
  }
}

}  // namespace llmcli
