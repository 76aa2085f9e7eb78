// Which ISA level this machine runs, of those that were built.
#include <string.h>

#include "kernels.h"

namespace ridgeline {

namespace portable {
extern const Kernels kernels;
}

#ifdef RL_HAS_avx2
namespace avx2 {
extern const Kernels kernels;
}
static bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // F16C is older than either
}
#endif

#ifdef RL_HAS_avx512
namespace avx512 {
extern const Kernels kernels;
}
#endif
#if defined(RL_HAS_avx512) || defined(RL_HAS_avx512bf16)
static bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

#ifdef RL_HAS_avx512bf16
namespace avx512bf16 {
extern const Kernels kernels;
}
static bool has_avx512bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
#endif

const Kernels* find_kernels(const char* isa) {
  const bool any = isa[0] == '\0';
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
#ifdef RL_HAS_avx512bf16
  if ((any || strcmp(isa, "avx512bf16") == 0) && has_avx512bf16()) return &avx512bf16::kernels;
#endif
#ifdef RL_HAS_avx512
  if ((any || strcmp(isa, "avx512") == 0) && has_avx512()) return &avx512::kernels;
#endif
#ifdef RL_HAS_avx2
  if ((any || strcmp(isa, "avx2") == 0) && has_avx2()) return &avx2::kernels;
#endif
  return any || strcmp(isa, "portable") == 0 ? &portable::kernels : nullptr;
}

}  // namespace ridgeline
