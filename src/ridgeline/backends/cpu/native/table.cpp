// The kernel table of one ISA level.
#include "kernels.h"

#define RL_STRING_(x) #x
#define RL_STRING(x) RL_STRING_(x)

namespace ridgeline::RL_ISA {

void linear(const View&, const Weight&, const float*, const View&, Span);
void linear_i8(const QuantizedView&, const Weight&, const float*, const View&, Span);
void linear_bf16(const Bf16View&, const Weight&, const float*, const View&, Span);
void quantize(const View&, const QuantizedView&, float, Span);
void round_bf16(const View&, const Bf16View&, float, Span);
void cut(const View&, const View&, float, Span);
void rms_norm(const View&, const float*, const View&, float, int64_t, Span);
void add_rms_norm(const View&, const View&, const float*, const View&, const View&, float, Span);
void layer_norm(const View&, const float*, const float*, const View&, float, Span);
void add(const View&, const View&, const View&, Span);
void mul(const View&, const View&, const View&, Span);
void silu_mul(const View&, const View&, const View&, Span);
void gelu_mul(const View&, const View&, const View&, Span);
void gelu(const View&, const View&, bool, Span);
void relu2(const View&, const View&, Span);
void softcap(const View&, const View&, float, Span);
void rope(const View&, const View&, const View&, Rotation, Span);
void append_kv(const AttentionArgs&, Span);
bool attend(const AttentionArgs&, const Team&);
void merge_parts(const AttentionArgs&, const Team&);
int64_t argmax(const float*, int64_t);
void weigh_pieces(const float*, int64_t, Span, Piece*);
void find_tops(const float*, int64_t, float*);
Moments moments(const float*, int64_t, float);
void favour_green(float*, int64_t, uint64_t, uint32_t, float);
int64_t pick_noisy(const float*, int64_t, int64_t, uint64_t);
void read(const uint8_t*, int64_t);
int64_t multiply(Arithmetic, int64_t);

extern const Kernels kernels;
const Kernels kernels = {RL_STRING(RL_ISA), linear,       linear_i8,    linear_bf16,
                         quantize,          round_bf16,   cut,          rms_norm,
                         add_rms_norm,      layer_norm,   add,          mul,
                         silu_mul,          gelu_mul,     gelu,         relu2,
                         softcap,           rope,         append_kv,    attend,
                         merge_parts,       argmax,       weigh_pieces, find_tops,
                         moments,           favour_green, pick_noisy,   read,
                         multiply};

}  // namespace ridgeline::RL_ISA
