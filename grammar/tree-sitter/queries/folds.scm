[(block) (options) (target_list)] @fold
