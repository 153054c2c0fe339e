"""GRU4Rec, NGCF and LightGCN training at hardware speed."""
