# %% [markdown]
# # mixtures
# text

# %%
x = 1
