// y = x Wᵀ + bias + scaling · thin · Bᵀ for up to 8 rows of x: a block takes 16 outputs, its warps take turns
// along the inputs. Blocks stay and go on to other outputs, whose weights they have begun to read by then.

#define BUFFERS 2  // sums of one tile are added up while those of the next are made

extern "C" __global__ void __launch_bounds__(THREADS, 3)
few_rows(const __grid_constant__ Members members, const u16* __restrict__ x, const float* __restrict__ nested_levels,
         const u32* __restrict__ pairs, u32* counters, int rows, int n_in, int shift, int tiles, int thin_blocks) {
  __shared__ __align__(128) u32 table[256 * 32];
  __shared__ float sums[BUFFERS][WARPS * ROW_TILES * 128];
#if DOUBLED
  __shared__ float second[256];
#else
  const float* second = nullptr;
#endif
  if ((int)blockIdx.x < thin_blocks) {
    thin_product(members, x, (float*)table, blockIdx.x, rows, n_in);
    arrive(counters);
    leave(counters);
    return;
  }
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, quad = lane & 3, in_quad = lane >> 2;
  const int pieces = n_in >> 6, groups = (pieces + GROUP - 1) / GROUP, stride = gridDim.x - thin_blocks;
  int tile = blockIdx.x - thin_blocks;

  Ahead ahead;
  if (warp < groups) {
    const Member& from = members.of[member_of_tile(members, tile)];
    read(ahead, from, (tile - from.first_tile) * 16, warp, pieces, shift, lane);
  }
  fill(table, pairs);
#if DOUBLED
  second[threadIdx.x] = __ldg(nested_levels + threadIdx.x);
#endif
  __syncthreads();

  bool waits = thin_blocks > 0;
  for (int turn = 0; tile < tiles; tile += stride, turn ^= 1) {
    float sum[ROW_TILES][4];
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
      for (int i = 0; i < 4; i++) sum[t][i] = 0.f;
    for (int group = warp; group < groups; group += WARPS) {
      Ahead now = ahead;
      int next = group + WARPS < groups ? tile : tile + stride;
      if (next < tiles) {
        const Member& from = members.of[member_of_tile(members, next)];
        read(ahead, from, (next - from.first_tile) * 16, next == tile ? group + WARPS : warp, pieces, shift, lane);
      }
      float scale[2];
      scales(scale, now, second, group, pieces, quad);
#pragma unroll
      for (int piece = 0; piece < GROUP; piece++) {
        int column = min(group * GROUP + piece, pieces - 1) * 64 + quad * 16;
        uint4 left[ROW_TILES], right[ROW_TILES];
#pragma unroll
        for (int t = 0; t < ROW_TILES; t++) {
          int row = t * 8 + in_quad;
          left[t] = right[t] = make_uint4(0, 0, 0, 0);
          if (row < rows) {
            const uint4* at = (const uint4*)(x + (size_t)row * n_in + column);
            left[t] = __ldg(at);
            right[t] = __ldg(at + 1);
          }
        }
        u32 a[4][4];
        levels(a, table, now.bytes[0][piece], now.bytes[1][piece], lane * 4);
        float above = __shfl_sync(~0u, scale[0], (lane & 28) | piece);
        float below = __shfl_sync(~0u, scale[1], (lane & 28) | piece);
#pragma unroll
        for (int t = 0; t < ROW_TILES; t++) {
          float part[4] = {0.f, 0.f, 0.f, 0.f};
          multiply_piece(part, a, left[t], right[t]);
          sum[t][0] += above * part[0];
          sum[t][1] += above * part[1];
          sum[t][2] += below * part[2];
          sum[t][3] += below * part[3];
        }
      }
    }
    // of each warp, (WARPS, 8 · ROW_TILES, 16)
    float* own = sums[turn];
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        own[((warp * ROW_TILES + t) * 8 + quad * 2 + (i & 1)) * 16 + (i >> 1) * 8 + in_quad] = sum[t][i];
    if (waits && threadIdx.x == 0) await(counters, thin_blocks);
    waits = false;
    __syncthreads();
    const Member& to = members.of[member_of_tile(members, tile)];
    for (int at = threadIdx.x; at < ROW_TILES * 128; at += THREADS) {
      int out = (tile - to.first_tile) * 16 + at % 16, row = at / 16;
      if (out >= to.n_out || row >= rows) continue;
      float total = 0.f;
#pragma unroll
      for (int w = 0; w < WARPS; w++) total += own[w * ROW_TILES * 128 + at];
      put(to, total, row, out);
    }
  }
  if (thin_blocks) leave(counters);
}
