// Chooses the table of kernels once per process; LLMCLI_CPU_ISA names another one that this CPU also runs.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "features.h"
#include "kernels.h"

namespace llmcli::cpu {

#if defined(__x86_64__)
namespace amx {
Kernels table();
}
namespace amx_emulated {
Kernels table();
}
namespace avx512bf16 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx2 {
extern const Kernels table;
}
#elif defined(__aarch64__)
namespace neon {
extern const Kernels table;
}
#endif
namespace baseline {
extern const Kernels table;
}

namespace {

struct Tables {
  const Kernels* list[8];
  int count = 0;
  // Tiles serve some kernels, avx512bf16 the others. Emulated ones are for tests: never chosen, never listed.
  Kernels tiles{}, emulated{};
  bool amx_refused = false;

  Tables() {
    const Features& f = features();
    const auto add = [this](bool runs, const Kernels& table) {
      if (runs) list[count++] = &table;
    };
#if defined(__x86_64__)
    if (f.avx512_bf16 && f.avx512_vnni) emulated = amx_emulated::table();
    if (f.amx) tiles = amx::table();
    amx_refused = f.amx && !multiplies_exactly(tiles);
    add(f.amx && !amx_refused, tiles);
    add(f.avx512_bf16 && f.avx512_vnni, avx512bf16::table);
    add(f.avx512, avx512::table);
    add(f.avx2, avx2::table);
#elif defined(__aarch64__)
    add(f.neon, neon::table);
#endif
    add(true, baseline::table);
  }

  const Kernels* find(const char* isa) const {
    for (int i = 0; i < count; ++i)
      if (std::strcmp(list[i]->isa, isa) == 0) return list[i];
    return emulated.isa && std::strcmp(emulated.isa, isa) == 0 ? &emulated : nullptr;
  }
};

const Tables& tables() {
  static const Tables found;
  return found;
}

// An unknown name in the environment is reported by the Python side, which can say what is available.
std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> chosen{[] {
    const char* wanted = std::getenv("LLMCLI_CPU_ISA");
    const Kernels* named = wanted ? tables().find(wanted) : nullptr;
    return named ? named : tables().list[0];
  }()};
  return chosen;
}

}  // namespace

const Kernels* const* available(int* count) {
  *count = tables().count;
  return tables().list;
}

const Kernels& active() { return *current().load(std::memory_order_relaxed); }

bool amx_refused() { return tables().amx_refused; }

bool activate(const char* isa) {
  const Kernels* named = tables().find(isa);
  if (named) current().store(named, std::memory_order_relaxed);
  return named != nullptr;
}

}  // namespace llmcli::cpu
