// y = x Wᵀ + bias + scaling · thin · Bᵀ for up to 8 rows of x: a block takes 16 outputs, its warps take turns
// along the inputs. Blocks stay and go on to other outputs, whose weights they have begun to read by then.

#ifndef BLOCKS
#define BLOCKS 3  // on one multiprocessor at once
#endif
#define BUFFERS 2  // sums of one tile are added up while those of the next are made

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
few_rows(const __grid_constant__ Members members, const u16* __restrict__ x, const float* __restrict__ nested_levels,
         const u32* __restrict__ pairs, u32* counters, int rows, int n_in, int shift, int tiles, int thin_blocks) {
  __shared__ __align__(128) u32 table[256 * 32];
  __shared__ float sums[BUFFERS][WARPS * 128];
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

  // where what is read next comes from
  int which = member_of_tile(members, tile);
  Source source;
  Ahead ahead;
  begin_at(source, members.of[which], (tile - members.of[which].first_tile) * 16, pieces, lane);
  if (warp < groups) read(ahead, members.of[which], source, warp, pieces, shift, lane);
  fill(table, pairs);
#if DOUBLED
  second[threadIdx.x] = __ldg(nested_levels + threadIdx.x);
#endif
  __syncthreads();
  const u32 own_levels = in_shared(table) + lane * 4;
  const u32 own_x = in_quad * n_in + quad * 16;

  bool waits = thin_blocks > 0;
  for (int turn = 0; tile < tiles; tile += stride, turn ^= 1) {
    float sum[4] = {0.f, 0.f, 0.f, 0.f};
    for (int group = warp; group < groups; group += WARPS) {
      Ahead now = ahead;
      if (group + WARPS < groups) {
        read(ahead, members.of[which], source, group + WARPS, pieces, shift, lane);
      } else if (tile + stride < tiles) {
        which = member_of_tile(members, tile + stride);
        begin_at(source, members.of[which], (tile + stride - members.of[which].first_tile) * 16, pieces, lane);
        read(ahead, members.of[which], source, warp, pieces, shift, lane);
      }
      float scale[2];
      scales(scale, now, second, group, pieces, quad);
#pragma unroll
      for (int piece = 0; piece < GROUP; piece++) {
        // columns of rows that are none hold anything: no other column follows from them
        uint4 left, right;
        if (in_quad < rows) {
          const uint4* at = (const uint4*)(x + (own_x + within(group * GROUP + piece, pieces) * 64));
          left = __ldg(at);
          right = __ldg(at + 1);
        }
        u32 a[4][4];
        levels(a, own_levels, now.bytes[0][piece], now.bytes[1][piece]);
        float above = __shfl_sync(~0u, scale[0], (lane & 28) | piece);
        float below = __shfl_sync(~0u, scale[1], (lane & 28) | piece);
        float part[4] = {0.f, 0.f, 0.f, 0.f};
        multiply_piece(part, a, left, right);
        sum[0] += above * part[0];
        sum[1] += above * part[1];
        sum[2] += below * part[2];
        sum[3] += below * part[3];
      }
    }
    // of each warp, (WARPS, 8, 16)
    float* own = sums[turn];
#pragma unroll
    for (int i = 0; i < 4; i++) own[(warp * 8 + quad * 2 + (i & 1)) * 16 + (i >> 1) * 8 + in_quad] = sum[i];
    if (waits && threadIdx.x == 0) await(counters, thin_blocks);
    waits = false;
    __syncthreads();
    const Member& to = members.of[member_of_tile(members, tile)];
    int out = (tile - to.first_tile) * 16 + threadIdx.x % 16, row = threadIdx.x / 16;
    if (out < to.n_out && row < rows) {
      float total = 0.f;
#pragma unroll
      for (int w = 0; w < WARPS; w++) total += own[w * 128 + threadIdx.x];
      put(to, total, row, out);
    }
  }
  if (thin_blocks) leave(counters);
}
